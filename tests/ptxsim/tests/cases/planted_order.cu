// Bugs of order that a barrier of other threads, or of the wrong scope, seems to cover. As planted.cu: `@name` marks the
// lines where the bug may be reported.
#include <cooperative_groups.h>
#include <cstdint>
#include <cuda/atomic>

namespace cg = cooperative_groups;

// ---- parts of a warp ---------------------------------------------------------------------------

template <bool bug>
__device__ void half_a_warp_syncs(const int* x, int* out) {
    __shared__ volatile int room[32];
    int lane = threadIdx.x, v = x[lane];
    room[lane] = v;  // @half_a_warp_syncs
    if (lane < 16) {
        __syncwarp(0xffff);
        v = room[(bug ? 31 : 15) - lane];  // @half_a_warp_syncs
    }
    out[lane] = v;
}

template <bool bug>
__device__ void shuffle_of_the_others(const int* x, int* out) {
    __shared__ volatile int room[32];
    int lane = threadIdx.x, v = x[lane];
    room[lane] = v;  // @shuffle_of_the_others
    if (lane >= 16) v = __shfl_xor_sync(0xffff0000u, v, 1);
    if (!bug) __syncwarp();
    if (lane < 16) v = room[31 - lane];  // @shuffle_of_the_others
    out[lane] = v;
}

template <bool bug>
__device__ void tile_too_small(const int* x, int* out) {
    __shared__ volatile int room[32];
    auto tile = cg::tiled_partition<bug ? 8 : 16>(cg::this_thread_block());
    room[threadIdx.x] = x[threadIdx.x];       // @tile_too_small
    tile.sync();
    out[threadIdx.x] = room[threadIdx.x ^ 8];  // @tile_too_small
}

template <bool bug>
__device__ void early_exit_before_sync(const int* x, int* out) {
    __shared__ volatile int room[32];
    int lane = threadIdx.x;
    room[lane] = x[lane];  // @early_exit_before_sync
    if (!bug) __syncwarp();
    if (lane >= 16) return;
    __syncwarp(0xffff);
    out[lane] = room[31 - lane];  // @early_exit_before_sync
}

// An arrival at an mbarrier orders what its own warp did for those who wait, not for its lanes.
template <bool bug>
__device__ void arrival_without_wait(const int* x, int* out) {
    __shared__ volatile int room[32];
    __shared__ __align__(8) uint64_t barrier;
    uint32_t at = __cvta_generic_to_shared(&barrier);
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0], 32;" ::"r"(at) : "memory");
    __syncwarp();  // the barrier is initialised
    room[threadIdx.x] = x[threadIdx.x];  // @arrival_without_wait
    uint64_t state;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(at) : "memory");
    uint32_t done = bug;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.test_wait.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(at), "l"(state) : "memory");
    out[threadIdx.x] = room[31 - threadIdx.x];  // @arrival_without_wait
}

// ---- global memory within a block --------------------------------------------------------------

template <bool bug>
__device__ void warps_through_global(const int* x, volatile int* out) {
    out[threadIdx.x] = 0;
    __syncthreads();                                        // out is zero
    const_cast<int*>(out)[threadIdx.x] = x[threadIdx.x];    // @warps_through_global
    if (!bug) __syncthreads();                              // x is copied
    int v = const_cast<int*>(out)[63 - threadIdx.x];        // @warps_through_global
    __syncthreads();                                        // all have read
    out[threadIdx.x] = v;
}

template <bool bug>
__device__ void lanes_through_global(const int* x, int* out) {
    out[threadIdx.x] = x[threadIdx.x];  // @lanes_through_global
    if (!bug) __syncwarp();
    else asm volatile("" ::: "memory");
    int v = out[31 - threadIdx.x];  // @lanes_through_global
    __syncwarp();                   // all have read
    out[threadIdx.x] = v;
}

// Every warp reads the first row before warp 0 overwrites it.
template <bool bug>
__device__ void row_that_all_warps_read(const int* x, int* out) {
    out[threadIdx.x] = x[threadIdx.x];
    __syncthreads();                       // out is filled
    int v = out[threadIdx.x % 32];         // @row_that_all_warps_read
    if (!bug) __syncthreads();             // all have read
    else asm volatile("" ::: "memory");
    if (threadIdx.x < 32) out[threadIdx.x] = 7;  // @row_that_all_warps_read
    __syncthreads();                             // the row is overwritten
    if (threadIdx.x >= 32) out[threadIdx.x] = v;
}

template <bool bug>
__device__ void two_warps_one_global_word(int* out) {
    if (threadIdx.x == 0) out[0] = 1;                    // @two_warps_one_global_word
    if (!bug) __syncthreads();                           // the first value is there
    if (threadIdx.x == 32) out[0] = 2;                   // @two_warps_one_global_word
}

// Each warp sets a sum to zero and adds to the other warp's.
template <bool bug>
__device__ void sums_not_yet_zero(int* out) {
    int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) out[warp] = 0;      // @sums_not_yet_zero
    if (!bug) __syncthreads();                     // both sums are zero
    else __syncwarp();
    atomicAdd(&out[1 - warp], 1);                  // @sums_not_yet_zero
}

// Warp 1 sees the flag, but nothing says that the data came first.
template <bool bug>
__device__ void flag_without_release(const int* x, int* out) {
    __shared__ unsigned flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();  // the flag is down
    cuda::atomic_ref<unsigned, cuda::thread_scope_block> up(flag);
    if (threadIdx.x == 0) {
        out[0] = x[0];  // @flag_without_release
        up.store(1, bug ? cuda::memory_order_relaxed : cuda::memory_order_release);
    } else if (threadIdx.x == 32) {
        while (up.load(cuda::memory_order_acquire) == 0) {}
        out[1] = out[0];  // @flag_without_release
    }
}

// ---- the grid ----------------------------------------------------------------------------------

template <bool bug>
__device__ void grid_sync_removed(int* out) {
    cg::grid_group grid = cg::this_grid();
    int i = grid.thread_rank();
    out[i] = i;  // @grid_sync_removed
    if (!bug) grid.sync();
    int v = out[(i + 32) % grid.size()];  // @grid_sync_removed
    grid.sync();
    out[i] = v;
}

// The first rounds are in order; after the last barrier a block reads what another one writes then.
template <bool bug>
__device__ void write_after_the_last_grid_sync(int* out) {
    cg::grid_group grid = cg::this_grid();
    int i = grid.thread_rank(), n = grid.size();
    out[i] = i;
    grid.sync();
    int v = out[(i + 32) % n] + out[0];  // all read the first word
    grid.sync();
    if (bug) v += out[(i + 32) % n];  // @write_after_the_last_grid_sync
    out[i] = v;                       // @write_after_the_last_grid_sync
}

#define PAIR(name, parameters, arguments)                                          \
    extern "C" __global__ void name##_bug parameters { name<true> arguments; }     \
    extern "C" __global__ void name##_ok parameters { name<false> arguments; }

PAIR(half_a_warp_syncs, (const int* x, int* out), (x, out))
PAIR(shuffle_of_the_others, (const int* x, int* out), (x, out))
PAIR(tile_too_small, (const int* x, int* out), (x, out))
PAIR(early_exit_before_sync, (const int* x, int* out), (x, out))
PAIR(arrival_without_wait, (const int* x, int* out), (x, out))
PAIR(warps_through_global, (const int* x, int* out), (x, out))
PAIR(lanes_through_global, (const int* x, int* out), (x, out))
PAIR(row_that_all_warps_read, (const int* x, int* out), (x, out))
PAIR(two_warps_one_global_word, (int* out), (out))  // @two_warps_one_global_word (nvcc gives a predicated store this line)
PAIR(sums_not_yet_zero, (int* out), (out))
PAIR(flag_without_release, (const int* x, int* out), (x, out))
PAIR(grid_sync_removed, (int* out), (out))
PAIR(write_after_the_last_grid_sync, (int* out), (out))
