// Bugs of TMA and clusters. As planted.cu: `@name` marks the lines where the bug may be reported.
#include "hopper.cuh"

#define BUG(name)                                                                              \
    extern "C" __global__ void name##_bug(const int* x, int* out) { name<true>(x, out); }      \
    extern "C" __global__ void name##_ok(const int* x, int* out) { name<false>(x, out); }

__device__ inline void init_one(uint64_t* full) {
    if (threadIdx.x == 0) {
        init_barrier<1>(full);
        fence_init();
    }
    __syncthreads();
}

template <bool bug>
__device__ void full_not_awaited(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    __shared__ uint64_t full;
    init_one(&full);
    if (threadIdx.x == 0) {
        expect(&full, 256);
        load_line(room, x, 256, &full);
    }
    __syncthreads();
    if (!bug || threadIdx.x >= 32) wait(&full, 0);
    out[threadIdx.x] = room[threadIdx.x];  // @full_not_awaited
    wait(&full, 0);
}
BUG(full_not_awaited)

// The stage is given back before it has been read.
template <bool bug>
__device__ void released_before_read(const int* x, int* out) {
    __shared__ alignas(16) int room[32];
    __shared__ uint64_t full, empty;
    if (threadIdx.x == 0) {
        init_barrier<1>(&full);
        init_barrier<1>(&empty);
        fence_init();
    }
    __syncthreads();
    int sum = 0, lane = threadIdx.x % 32;
    for (int t = 0; t < 4; ++t) {
        if (threadIdx.x >= 32) {
            if (lane == 0) {
                if (t) wait(&empty, (t - 1) & 1);
                expect(&full, 128);
                load_line(room, x + 32 * t, 128, &full);  // @released_before_read
            }
            __syncwarp();
        } else {
            wait(&full, t & 1);
            if (bug && lane == 0) arrive(&empty);
            sum += room[lane];  // @released_before_read
            fence_proxy();
            __syncwarp();
            if (!bug && lane == 0) arrive(&empty);
        }
    }
    out[threadIdx.x] = sum;
}
BUG(released_before_read)

template <bool bug>
__device__ void refilled_without_proxy_fence(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    __shared__ uint64_t full;
    init_one(&full);
    int sum = 0;
    for (int t = 0; t < 2; ++t) {
        if (threadIdx.x == 0) {
            expect(&full, 256);
            load_line(room, x + 64 * t, 256, &full);  // @refilled_without_proxy_fence
        }
        wait(&full, t);
        sum += room[threadIdx.x];
        if (!bug) fence_proxy();
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}
BUG(refilled_without_proxy_fence)

template <bool bug>
__device__ void overwritten_without_proxy_fence(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    __shared__ uint64_t full;
    room[threadIdx.x] = threadIdx.x;
    if (!bug) fence_proxy();
    init_one(&full);
    if (threadIdx.x == 0) {
        expect(&full, 256);
        load_line(room, x, 256, &full);  // @overwritten_without_proxy_fence
    }
    wait(&full, 0);
    out[threadIdx.x] = room[threadIdx.x];
}
BUG(overwritten_without_proxy_fence)

template <bool bug>
__device__ void stored_without_proxy_fence(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    room[threadIdx.x] = x[threadIdx.x];
    if (!bug) fence_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_line(out, room, 256);  // @stored_without_proxy_fence
        commit_stores();
        wait_stores_read();
    }
}
BUG(stored_without_proxy_fence)

template <bool bug>
__device__ void fence_after_the_barrier(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    room[threadIdx.x] = x[threadIdx.x];
    if (!bug) fence_proxy();
    __syncthreads();
    if (bug && threadIdx.x >= 32) fence_proxy();  // by a warp that nothing puts before the copy
    if (threadIdx.x == 0) {
        store_line(out, room, 256);  // @fence_after_the_barrier
        commit_stores();
        wait_stores_read();
    }
}
BUG(fence_after_the_barrier)

template <bool bug>
__device__ void read_wait_dropped(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    room[threadIdx.x] = x[threadIdx.x];
    fence_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_line(out, room, 256);
        commit_stores();
        if (!bug) wait_stores_read();
    }
    __syncthreads();
    room[threadIdx.x] = 0;  // @read_wait_dropped
    if (threadIdx.x == 0) wait_stores_read();
}
BUG(read_wait_dropped)

template <bool bug>
__device__ void store_not_committed(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    room[threadIdx.x] = x[threadIdx.x];
    fence_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_line(out, room, 256);
        if (!bug) commit_stores();
        wait_stores();
    }
}  // @store_not_committed
extern "C" __global__ void store_not_committed_bug(const int* x, int* out) { store_not_committed<true>(x, out); }  // @store_not_committed
extern "C" __global__ void store_not_committed_ok(const int* x, int* out) { store_not_committed<false>(x, out); }

template <bool bug>
__device__ void init_without_fence(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        init_barrier<1>(&full);
        if (!bug) fence_init();
    }
    __syncthreads();
    if (threadIdx.x == 32) {
        expect(&full, 256);
        load_line(room, x, 256, &full);  // @init_without_fence
    }
    wait(&full, 0);
    out[threadIdx.x] = room[threadIdx.x];
}
BUG(init_without_fence)

template <bool bug>
__device__ void copied_over_unread_words(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    __shared__ uint64_t full;
    room[threadIdx.x] = threadIdx.x;
    init_one(&full);
    int before = room[63 - threadIdx.x];
    fence_proxy();
    if (!bug) __syncthreads();
    if (threadIdx.x == 0) {
        expect(&full, 256);
        load_line(room, x, 256, &full);  // @copied_over_unread_words
    }
    if (bug && threadIdx.x >= 32) before += room[63 - threadIdx.x];  // @copied_over_unread_words
    wait(&full, 0);
    out[threadIdx.x] = room[threadIdx.x] + before;
}
BUG(copied_over_unread_words)

template <bool bug>
__device__ void ends_before_the_copy(const int* x, int* out) {
    __shared__ alignas(16) int room[64];
    __shared__ uint64_t full;
    init_one(&full);
    out[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == 0) {
        expect(&full, 256);
        load_line(room, x, 256, &full);
    }
    __syncthreads();
    if (!bug) wait(&full, 0);
}
extern "C" __global__ void ends_before_the_copy_bug(const int* x, int* out) { ends_before_the_copy<true>(x, out); }  // @ends_before_the_copy
extern "C" __global__ void ends_before_the_copy_ok(const int* x, int* out) { ends_before_the_copy<false>(x, out); }

// ---- clusters of two CTAs ----------------------------------------------------------------------

#define CLUSTER_BUG(name)                                                                                       \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) name##_bug(const int* x, int* out) { name<true>(x, out); } \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) name##_ok(const int* x, int* out) { name<false>(x, out); }

template <bool bug>
__device__ void cluster_barrier_dropped(const int* x, int* out) {
    __shared__ int room[64];
    int rank = cluster_rank(), at = rank * 64 + threadIdx.x;
    room[threadIdx.x] = x[at];  // @cluster_barrier_dropped
    if (bug) __syncthreads();
    else cluster_sync();
    out[at] = read_in(&room[threadIdx.x], 1 - rank);  // @cluster_barrier_dropped
    cluster_sync();
}
CLUSTER_BUG(cluster_barrier_dropped)

template <bool bug>
__device__ void relaxed_arrival(const int* x, int* out) {
    __shared__ int room[64];
    int rank = cluster_rank(), at = rank * 64 + threadIdx.x;
    room[threadIdx.x] = x[at];
    if (bug) cluster_arrive_relaxed();
    else cluster_arrive();
    cluster_wait();
    out[at] = read_in(&room[threadIdx.x], 1 - rank);  // @relaxed_arrival
    cluster_sync();
}
CLUSTER_BUG(relaxed_arrival)

template <bool bug>
__device__ void ends_too_early(const int* x, int* out) {
    __shared__ int room[64];
    int rank = cluster_rank(), at = rank * 64 + threadIdx.x;
    room[threadIdx.x] = x[at];
    cluster_sync();
    out[at] = read_in(&room[threadIdx.x], 1 - rank);  // @ends_too_early
    if (!bug) cluster_sync();
}  // @ends_too_early
extern "C" __global__ void __cluster_dims__(2, 1, 1) ends_too_early_bug(const int* x, int* out) { ends_too_early<true>(x, out); }  // @ends_too_early
extern "C" __global__ void __cluster_dims__(2, 1, 1) ends_too_early_ok(const int* x, int* out) { ends_too_early<false>(x, out); }

template <bool bug>
__device__ void remote_write_unordered(const int* x, int* out) {
    __shared__ int room[64];
    int rank = cluster_rank(), at = rank * 64 + threadIdx.x;
    room[threadIdx.x] = 0;  // @remote_write_unordered
    if (!bug) cluster_sync();
    write_in(&room[threadIdx.x], 1 - rank, x[at]);  // @remote_write_unordered
    cluster_sync();
    out[at] = room[threadIdx.x];
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) remote_write_unordered_bug(const int* x, int* out) { remote_write_unordered<true>(x, out); }
extern "C" __global__ void __cluster_dims__(2, 1, 1) remote_write_unordered_ok(const int* x, int* out) { remote_write_unordered<false>(x, out); }

// A flag by a remote mbarrier: one warp has waited, the other has not.
template <bool bug>
__device__ void one_warp_waits(const int* x, int* out) {
    __shared__ int room[64];
    __shared__ uint64_t full;
    int rank = cluster_rank(), at = rank * 64 + threadIdx.x;
    if (threadIdx.x == 0) {
        init_barrier<64>(&full);
        fence_init();
    }
    cluster_sync();
    write_in(&room[threadIdx.x], 1 - rank, x[at]);  // @one_warp_waits
    arrive_in(&full, 1 - rank);
    if (!bug || threadIdx.x < 32) wait(&full, 0);
    out[at] = room[threadIdx.x];  // @one_warp_waits
    wait(&full, 0);
    cluster_sync();
}
CLUSTER_BUG(one_warp_waits)
