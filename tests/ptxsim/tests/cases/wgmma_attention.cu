// Causal attention of one head, d = 64, dv = 128, bf16: a producer warpgroup fills K and V by ordinary stores, two
// consumer warpgroups take 64 query rows each. S = Q K' from shared memory, P from registers, V as it lies (MN-major).
#include <cuda_bf16.h>
#include <math_constants.h>
#include <stdint.h>

constexpr int kRows = 128, kKeys = 128, kD = 64, kDv = 128, kStages = 2;
constexpr int kQBytes = kRows * kD * 2, kKBytes = kKeys * kD * 2, kVBytes = kKeys * kDv * 2, kStage = kKBytes + kVBytes;

__device__ uint32_t address_of(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::"r"(
            barrier),
        "r"(parity)
        : "memory");
}
__device__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Panels of 64 columns, rows of 128 bytes, swizzled. `leading`: from a panel to the next, for V.
__device__ uint64_t descriptor(uint32_t address, uint32_t leading) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
           uint64_t(1) << 62;
}
__device__ void copy_panel(char* to, const __nv_bfloat16* from, int stride) {
    for (int piece = threadIdx.x; piece < 128 * 8; piece += 128) {
        int row = piece / 8, column = piece % 8;
        *reinterpret_cast<uint4*>(to + row * 128 + (column ^ (row % 8)) * 16) =
            *reinterpret_cast<const uint4*>(from + row * stride + column * 8);
    }
}

#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D64 D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56)
#define ACCUMULATORS \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "

__device__ void multiply_qk(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACCUMULATORS
        "%64, %65, p, 1, 1, 0, 0;\n}"
        : D64
        : "l"(a), "l"(b), "r"(accumulate));
}
__device__ void multiply_pv(float (&d)[64], const uint32_t* p, uint64_t b) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACCUMULATORS
        "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
        : D64
        : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));
}

__device__ void produce(char* tiles, uint32_t full, uint32_t empty, const __nv_bfloat16* q, const __nv_bfloat16* k,
                        const __nv_bfloat16* v, int block) {
    copy_panel(tiles, q + block * kRows * kD, kD);
#pragma unroll 1
    for (int tile = 0; tile <= block; ++tile) {
        int stage = tile % kStages;
        char* at = tiles + kQBytes + stage * kStage;
        wait(empty + 8 * stage, (tile / kStages + 1) & 1);
        copy_panel(at, k + tile * kKeys * kD, kD);
        for (int half = 0; half < 2; ++half)
            copy_panel(at + kKBytes + half * kVBytes / 2, v + tile * kKeys * kDv + half * 64, kDv);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        arrive(full + 8 * stage);
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
    __shared__ uint64_t barriers[2 * kStages];
    uint32_t full = address_of(barriers), empty = full + 8 * kStages;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" ::"r"(full + 8 * s) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 8;" ::"r"(empty + 8 * s) : "memory");
        }
    }
    __syncthreads();
    int block = blockIdx.x;
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        return produce(tiles, full, empty, q, k, v, block);
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    int half = threadIdx.x < 256 ? 0 : 64, lane = threadIdx.x % 32, row = half + threadIdx.x % 128 / 32 * 16 + lane / 4;
    uint64_t query = descriptor(address_of(tiles) + half * 128, 16);
    float o[64], largest[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {0, 0};
    for (int i = 0; i < 64; ++i) o[i] = 0;
#pragma unroll 1
    for (int tile = 0; tile <= block; ++tile) {
        int stage = tile % kStages;
        uint32_t at = address_of(tiles) + kQBytes + stage * kStage;
        float s[64];
        for (int i = 0; i < 64; ++i) s[i] = 0;
        wait(full + 8 * stage, (tile / kStages) & 1);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int i = 0; i < kD / 16; ++i) multiply_qk(s, query + 2 * i, descriptor(at, 16) + 2 * i, i > 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(s[i]));
        uint32_t p[32];
        for (int r = 0; r < 2; ++r) {
            float top = largest[r];
            for (int i = 0; i < 64; ++i) {
                if (i / 2 % 2 != r) continue;
                int key = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
                if (tile == block && key > row + 8 * r) s[i] = -CUDART_INF_F;
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
        for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(o[i]));
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int i = 0; i < kKeys / 16; ++i)
            multiply_pv(o, p + 4 * i, descriptor(at + kKBytes, kVBytes / 2) + i * (2048 >> 4));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(o[i]));
        if (lane == 0) arrive(empty + 8 * stage);
    }
    for (int i = 0; i < 64; ++i) {
        int r = i / 2 % 2;
        out[(block * kRows + row + 8 * r) * kDv + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = o[i] / quad_sum(sum[r]);
    }
}
