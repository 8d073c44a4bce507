// Causal attention of one head, d = 64, dv = 128, bf16: a producer warpgroup fills K and V by ordinary stores, two
// consumer warpgroups take 64 query rows each. S = Q K' from shared memory, P from registers, V as it lies (MN-major).
#include <math_constants.h>

#include "wgmma.cuh"

constexpr int kRows = 128, kKeys = 128, kD = 64, kDv = 128, kStages = 2;
constexpr int kQBytes = kRows * kD * 2, kKBytes = kKeys * kD * 2, kVBytes = kKeys * kDv * 2, kStage = kKBytes + kVBytes;

__device__ void produce(char* tiles, uint64_t* full, uint64_t* empty, const __nv_bfloat16* q,
                        const __nv_bfloat16* k, const __nv_bfloat16* v, int block) {
    copy_panel(tiles, q + block * kRows * kD, kRows, kD);
#pragma unroll 1
    for (int tile = 0; tile <= block; ++tile) {
        int stage = tile % kStages;
        char* at = tiles + kQBytes + stage * kStage;
        wait(&empty[stage], (tile / kStages + 1) & 1);
        copy_panel(at, k + tile * kKeys * kD, kKeys, kD);
        for (int half = 0; half < 2; ++half)
            copy_panel(at + kKBytes + half * kVBytes / 2, v + tile * kKeys * kDv + half * 64, kKeys, kDv);
        fence_proxy();
        arrive(&full[stage]);
    }
}

__device__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

extern "C" __global__ void __launch_bounds__(384, 1)
    attention(const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, float* out, float scale) {
    extern __shared__ __align__(1024) char tiles[];
    __shared__ uint64_t full[kStages], empty[kStages];
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            init_barrier<128>(&full[s]);
            init_barrier<8>(&empty[s]);
        }
    }
    __syncthreads();
    int block = blockIdx.x;
    if (threadIdx.x < 128) {
        give_registers<40>();
        return produce(tiles, full, empty, q, k, v, block);
    }
    take_registers<232>();
    int half = threadIdx.x < 256 ? 0 : 64, lane = threadIdx.x % 32, row = half + accumulator_row(0);
    uint64_t query = descriptor(shared_address(tiles) + half * 128);
    float o[64], largest[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {0, 0};
    for (int i = 0; i < 64; ++i) o[i] = 0;
#pragma unroll 1
    for (int tile = 0; tile <= block; ++tile) {
        int stage = tile % kStages;
        uint32_t at = shared_address(tiles) + kQBytes + stage * kStage;
        float s[64];
        for (int i = 0; i < 64; ++i) s[i] = 0;
        wait(&full[stage], (tile / kStages) & 1);
        wgmma_fence();
        for (int i = 0; i < kD / 16; ++i) multiply(s, query + 2 * i, descriptor(at) + 2 * i, i > 0);
        wgmma_commit();
        wgmma_wait<0>();
        touch(s);
        uint32_t p[32];
        for (int r = 0; r < 2; ++r) {
            float top = largest[r];
            for (int i = 0; i < 64; ++i) {
                if (i / 2 % 2 != r) continue;
                if (tile == block && accumulator_column(i) > row + 8 * r) s[i] = -CUDART_INF_F;
                top = fmaxf(top, s[i]);
            }
            top = quad_max(top);
            float factor = exp2f((largest[r] - top) * scale), added = 0;
            largest[r] = top;
            for (int i = 0; i < 64; ++i) {
                if (i / 2 % 2 != r) continue;
                s[i] = exp2f((s[i] - top) * scale);
                added += s[i];
                o[i] *= factor;
            }
            sum[r] = sum[r] * factor + added;
        }
        for (int i = 0; i < 32; ++i) {
            __nv_bfloat162 pair = __floats2bfloat162_rn(s[2 * i], s[2 * i + 1]);
            p[i] = *reinterpret_cast<uint32_t*>(&pair);
        }
        for (int i = 0; i < 32; ++i) asm volatile("" : "+r"(p[i]));
        touch(o);
        wgmma_fence();
        for (int i = 0; i < kKeys / 16; ++i)
            multiply(o, p + 4 * i, descriptor(at + kKBytes, kVBytes / 2) + i * (2048 >> 4));
        wgmma_commit();
        wgmma_wait<0>();
        touch(o);
        if (lane == 0) arrive(&empty[stage]);
    }
    for (int i = 0; i < 64; ++i) {
        int r = i / 2 % 2;
        out[(block * kRows + row + 8 * r) * kDv + accumulator_column(i)] = o[i] / quad_sum(sum[r]);
    }
}
