// TMA pipelines, clusters and dependent launches with known answers.
#include <cooperative_groups.h>

#include "hopper.cuh"

namespace cg = cooperative_groups;

// Sums of the rows of an int matrix of 32 columns, tiles of 8 rows through three stages; a producer warp loads boxes,
// two consumer warps add.
constexpr int kStages = 3, kRows = 8, kColumns = 32, kBytes = kRows * kColumns * 4;

extern "C" __global__ void pipeline(const __grid_constant__ TensorMap map, int* out, int rows) {
    __shared__ alignas(1024) int tile[kStages][kRows][kColumns];
    __shared__ uint64_t full[kStages], empty[kStages];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            init_barrier<1>(&full[s]);
            init_barrier<2>(&empty[s]);
        }
        fence_init();
    }
    __syncthreads();
    int tiles = (rows + kRows - 1) / kRows;
    if (warp == 0) {
        for (int t = 0; t < tiles; ++t) {
            int s = t % kStages, round = t / kStages;
            if (round) wait(&empty[s], (round - 1) & 1);
            if (lane == 0) {
                expect(&full[s], kBytes);
                load_box(tile[s], &map, 0, t * kRows, &full[s]);
            }
            __syncwarp();
        }
        return;
    }
    for (int t = 0; t < tiles; ++t) {
        int s = t % kStages, round = t / kStages;
        wait(&full[s], round & 1);
        for (int r = warp - 1; r < kRows; r += 2) {
            int sum = __reduce_add_sync(~0u, tile[s][r][lane]);
            if (lane == 0 && t * kRows + r < rows) out[t * kRows + r] = sum;
        }
        fence_proxy();
        __syncwarp();
        if (lane == 0) arrive(&empty[s]);
    }
}

// Every CTA of the cluster sums its part of x; then each adds up the parts of all CTAs and scales its part by the total.
extern "C" __global__ void cluster_sum(const int* x, int* out) {
    __shared__ int part;
    cg::cluster_group cluster = cg::this_cluster();
    if (threadIdx.x == 0) part = 0;
    __syncthreads();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&part, x[i]);
    cluster.sync();
    int sum = 0;
    for (unsigned r = 0; r < cluster.num_blocks(); ++r) sum += *cluster.map_shared_rank(&part, r);
    out[i] = sum;
    cluster.sync();
}

// A histogram whose bins are spread over the shared memory of the cluster's CTAs.
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_bins(const int* x, int* out) {
    __shared__ int bins[16];
    cg::cluster_group cluster = cg::this_cluster();
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    cluster.sync();
    int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    atomicAdd(cluster.map_shared_rank(&bins[v % 16], v / 16), 1);
    cluster.sync();
    if (threadIdx.x < 16) out[cluster.block_rank() * 16 + threadIdx.x] = bins[threadIdx.x];
}

// Each CTA loads a quarter of the rows for all CTAs of its cluster; what was read is released in every CTA's barrier.
extern "C" __global__ void __cluster_dims__(2, 1, 1) multicast(const __grid_constant__ TensorMap map, int* out, int rounds) {
    __shared__ alignas(1024) int tile[2][4][kColumns];
    __shared__ uint64_t full, empty;
    int rank = cluster_rank(), lane = threadIdx.x;
    if (lane == 0) {
        init_barrier<1>(&full);
        init_barrier<2>(&empty);
        fence_init();
    }
    cluster_sync();
    int sum = 0;
    for (int t = 0; t < rounds; ++t) {
        if (lane == 0) {
            if (t) wait(&empty, (t - 1) & 1);
            expect(&full, 2 * 4 * kColumns * 4);
            load_box_multicast(tile[rank], &map, 0, (2 * t + rank) * 4, &full, 3);
        }
        __syncwarp();
        wait(&full, t & 1);
        for (int r = 0; r < 8; ++r) sum += tile[r / 4][r % 4][lane];
        fence_proxy();
        __syncwarp();
        if (lane < 2) arrive_in(&empty, lane);
    }
    out[rank * kColumns + lane] = sum;
    cluster_sync();
}

// One CTA writes into the next one's shared memory, around the ring, by a bulk copy between shared memories.
extern "C" __global__ void ring(const int* x, int* out) {
    __shared__ alignas(16) int mine[32], theirs[32];
    __shared__ uint64_t full;
    int rank = cluster_rank(), size = cg::this_cluster().num_blocks(), lane = threadIdx.x;
    if (lane == 0) {
        init_barrier<1>(&full);
        fence_init();
    }
    mine[lane] = x[rank * 32 + lane];
    fence_proxy();
    cluster_sync();
    if (lane == 0) {
        expect(&full, 128);
        asm volatile(
            "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                address_in(theirs, (rank + 1) % size)),
            "r"(shared_address(mine)), "r"(128), "r"(address_in(&full, (rank + 1) % size))
            : "memory");
    }
    __syncwarp();
    wait(&full, 0);
    out[rank * 32 + lane] = theirs[lane];
    cluster_sync();
}

// ---- dependent launch --------------------------------------------------------------------------

extern "C" __global__ void first_half(int* parts, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("griddepcontrol.launch_dependents;");
    if (i < n) parts[i] = 3 * i;
}

template <bool bug>
__device__ void second_half(const int* parts, const int* table, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int base = table[threadIdx.x];
    if (!bug) asm volatile("griddepcontrol.wait;" ::: "memory");
    if (i < n) out[i] = base + parts[n - 1 - i];  // @second_half
}
extern "C" __global__ void second_half_ok(const int* p, const int* t, int* o, int n) { second_half<false>(p, t, o, n); }
extern "C" __global__ void second_half_bug(const int* p, const int* t, int* o, int n) { second_half<true>(p, t, o, n); }

// One thread waits for all: the others are ordered after it by the barrier.
extern "C" __global__ void second_half_by_one(const int* parts, const int* table, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int base = table[threadIdx.x];
    if (threadIdx.x == 0) asm volatile("griddepcontrol.wait;" ::: "memory");
    __syncthreads();
    if (i < n) out[i] = base + parts[n - 1 - i];
}
