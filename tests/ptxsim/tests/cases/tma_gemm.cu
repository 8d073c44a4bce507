// C = A B' as wgmma_gemm.cu computes it, but one thread of the producer warpgroup loads the tiles by TMA, and C leaves by
// a bulk store from the stages' memory.
#include "hopper.cuh"
#include "wgmma_gemm.cu"

__device__ void store_box(const TensorMap* map, const void* from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y),
                 "r"(shared_address(from))
                 : "memory");
}

extern "C" __global__ void __launch_bounds__(384, 1)
    tma_gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c,
             int k) {
    extern __shared__ __align__(1024) char tiles[];
    __shared__ uint64_t full[kStages], empty[kStages];
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            init_barrier(&full[s], 1);
            init_barrier(&empty[s], 8);
        }
        fence_init();
    }
    __syncthreads();
    int row = blockIdx.x * kM, column = blockIdx.y * kN;
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
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
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    int rows = threadIdx.x < 256 ? 0 : 64;
    float d[64];
    for (int i = 0; i < 64; ++i) d[i] = 0;
#pragma unroll 1
    for (int tile = 0; tile < k / kK; ++tile) {
        int stage = tile % kStages;
        wait(&full[stage], (tile / kStages) & 1);
        uint32_t at = address_of(tiles + stage * kStage);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int i = 0; i < kK / 16; ++i)
            multiply(d, descriptor(at + rows * 128) + 2 * i, descriptor(at + kABytes) + 2 * i, tile + i > 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (tile > 0 && threadIdx.x % 32 == 0) arrive(&empty[(tile - 1) % kStages]);
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(d[i]));
    asm volatile("bar.sync 1, 256;" ::: "memory");  // all have multiplied the last tiles
    float* out = reinterpret_cast<float*>(tiles);
    int thread = threadIdx.x % 128, lane = thread % 32;
    for (int i = 0; i < 64; ++i)
        out[(rows + thread / 32 * 16 + lane / 4 + 8 * (i / 2 % 2)) * kN + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = d[i];
    fence_proxy();
    asm volatile("bar.sync 1, 256;" ::: "memory");
    if (threadIdx.x == 128) {
        store_box(&c, out, column, row);
        commit_stores();
        wait_stores_read();
    }
}
