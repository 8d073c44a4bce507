// C = A B' as wgmma_gemm.cu computes it, but one thread of the producer warpgroup loads the tiles by TMA, and C leaves by
// a bulk store from the stages' memory.
#include "wgmma.cuh"

constexpr int kM = 128, kN = 128, kK = 64, kStages = 2;  // of a tile
constexpr int kABytes = kM * kK * 2, kBBytes = kN * kK * 2, kStage = kABytes + kBBytes;

__device__ void consumers_meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

extern "C" __global__ void __launch_bounds__(384, 1)
    tma_gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c,
             int k) {
    extern __shared__ __align__(1024) char tiles[];
    __shared__ uint64_t full[kStages], empty[kStages];
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            init_barrier<1>(&full[s]);
            init_barrier<8>(&empty[s]);
        }
        fence_init();
    }
    __syncthreads();
    int row = blockIdx.x * kM, column = blockIdx.y * kN;
    if (threadIdx.x < 128) {
        give_registers<40>();
        if (threadIdx.x > 0) return;
#pragma unroll 1
        for (int tile = 0; tile < k / kK; ++tile) {
            int stage = tile % kStages;
            wait(&empty[stage], (tile / kStages + 1) & 1);
            expect(&full[stage], kStage);
            load_box(tiles + stage * kStage, &a, tile * kK, row, &full[stage]);
            load_box(tiles + stage * kStage + kABytes, &b, tile * kK, column, &full[stage]);
        }
        return;
    }
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
    consumers_meet();  // all have multiplied the last tiles
    float* out = reinterpret_cast<float*>(tiles);
    for (int i = 0; i < 64; ++i) out[(rows + accumulator_row(i)) * kN + accumulator_column(i)] = d[i];
    fence_proxy();
    consumers_meet();
    if (threadIdx.x == 128) {
        store_box(&c, out, column, row);
        commit_stores();
        wait_stores_read();
    }
}
