// C = A B', bf16 in, fp32 out: a producer warpgroup copies tiles by ordinary stores, two consumer warpgroups of 64 rows
// multiply them by wgmma. Two stages, handed over by mbarriers; registers move from the producer to the consumers.
#include "wgmma.cuh"

constexpr int kM = 128, kN = 128, kK = 64, kStages = 2;  // of a tile
constexpr int kABytes = kM * kK * 2, kBBytes = kN * kK * 2, kStage = kABytes + kBBytes;

extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n, int k) {
    extern __shared__ __align__(1024) char tiles[];
    __shared__ uint64_t full[kStages], empty[kStages];
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            init_barrier<128>(&full[s]);
            init_barrier<8>(&empty[s]);
        }
    }
    __syncthreads();
    int row = blockIdx.x * kM, column = blockIdx.y * kN;
    if (threadIdx.x < 128) {
        give_registers<40>();
#pragma unroll 1
        for (int tile = 0; tile < k / kK; ++tile) {
            int stage = tile % kStages;
            wait(&empty[stage], (tile / kStages + 1) & 1);
            copy_panel(tiles + stage * kStage, a + row * k + tile * kK, kM, k);
            copy_panel(tiles + stage * kStage + kABytes, b + column * k + tile * kK, kN, k);
            fence_proxy();
            arrive(&full[stage]);
        }
    } else {
        take_registers<232>();
        int rows = threadIdx.x < 256 ? 0 : 64;
        float d[64];
        for (int i = 0; i < 64; ++i) d[i] = 0;
#pragma unroll 1
        for (int tile = 0; tile < k / kK; ++tile) {
            int stage = tile % kStages;
            wait(&full[stage], (tile / kStages) & 1);
            uint32_t at = shared_address(tiles + stage * kStage);
            wgmma_fence();
            for (int i = 0; i < kK / 16; ++i)
                multiply(d, descriptor(at + rows * 128) + 2 * i, descriptor(at + kABytes) + 2 * i, tile + i > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (tile > 0 && threadIdx.x % 32 == 0) arrive(&empty[(tile - 1) % kStages]);
        }
        wgmma_wait<0>();
        touch(d);
        for (int i = 0; i < 64; ++i) c[(row + rows + accumulator_row(i)) * n + column + accumulator_column(i)] = d[i];
    }
}
