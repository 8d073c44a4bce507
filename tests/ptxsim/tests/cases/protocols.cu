// Correct ways to hand data on without a barrier of the whole block: none of them is a race.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda/atomic>

namespace cg = cooperative_groups;
using flag_of_block = cuda::atomic_ref<unsigned, cuda::thread_scope_block>;
using flag_of_device = cuda::atomic_ref<unsigned, cuda::thread_scope_device>;

// ---- parts of a warp ---------------------------------------------------------------------------

// Each half of a warp exchanges data behind syncs of its own, the high half more often; then the halves meet.
extern "C" __global__ void halves(int* out) {
    __shared__ volatile int room[32];
    int lane = threadIdx.x, low = lane < 16, sum = 0;
    room[lane] = lane;
    if (low) {
        __syncwarp(0xffffu);  // the low half is written
        sum = room[15 - lane];
    } else {
        for (int t = 0; t < 3; t++) {
            __syncwarp(0xffff0000u);  // the high half is written
            sum += room[47 - lane];
            __syncwarp(0xffff0000u);  // and read
            room[lane] = lane + t;
        }
    }
    __syncwarp();  // both halves are at rest
    out[lane] = sum * 100 + room[31 - lane];
}

// Tiles of eight lanes: shuffles, a ballot, and shared memory behind the tile's own sync.
extern "C" __global__ void tiles(const int* x, int* out) {
    __shared__ int room[64];
    cg::thread_block_tile<8> tile = cg::tiled_partition<8>(cg::this_thread_block());
    int i = threadIdx.x, mine = tile.thread_rank(), first = i - mine;
    int sum = cg::reduce(tile, x[i], cg::plus<int>());
    int positive = __popc(tile.ballot(x[i] > 0)), any_seven = tile.any(x[i] == 7);
    int same = __popc(tile.match_any(x[i] & 3));
    room[i] = x[i];
    for (int t = 0; t < 3; t++) {
        tile.sync();  // the tile's words are written
        int v = room[first + (mine + 1) % 8];
        tile.sync();  // and read
        room[i] = v + t;
    }
    out[i] = sum * 1000 + positive * 100 + any_seven * 50 + same + room[i] * 100000;
}

// Lanes that took one side of a branch form a group; each side's groups run the same instruction with their own masks.
extern "C" __global__ void partitioned(const int* x, int* out) {
    cg::coalesced_group all = cg::coalesced_threads();
    auto alike = cg::labeled_partition(all, x[threadIdx.x] % 5);
    out[threadIdx.x] = cg::reduce(alike, x[threadIdx.x], cg::plus<int>()) * 64 + alike.size();
}

// Adjacent lanes share a word, and update their halves of it in place; so do bytes of different warps.
extern "C" __global__ void in_place(unsigned short* halves, unsigned char* bytes) {
    int i = threadIdx.x;
    for (int t = 0; t < 3; t++) halves[i] = halves[i] * 3 + 1;
    int at = i % 32 * 4 + i / 32;
    for (int t = 0; t < 3; t++) bytes[at] = bytes[at] * 5 + 2;
}

// ---- warps of a block --------------------------------------------------------------------------

// Warp 0 produces, warp 1 consumes: a fence and a volatile flag, then release and acquire, then a flag in shared memory.
extern "C" __global__ void flags_in_a_block(int* data, volatile unsigned* flag, unsigned* strong, int* out) {
    __shared__ unsigned in_shared;
    int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) in_shared = 0;
    __syncthreads();  // the shared flag is down
    if (threadIdx.x < 32) {
        data[lane] = lane;
        __syncwarp();
        __threadfence_block();
        if (lane == 0) *flag = 1;
        data[32 + lane] = lane * 2;
        __syncwarp();
        if (lane == 0) flag_of_block(*strong).store(1, cuda::memory_order_release);
        data[64 + lane] = lane * 3;
        __syncwarp();
        __threadfence_block();
        if (lane == 0) atomicExch(&in_shared, 1u);
    } else {
        if (lane == 0)
            while (*flag == 0) {}
        __threadfence_block();
        __syncwarp();
        int sum = data[31 - lane];
        while (flag_of_block(*strong).load(cuda::memory_order_acquire) == 0) {}
        sum += data[32 + 31 - lane];
        while (atomicAdd(&in_shared, 0u) == 0) {}
        __threadfence_block();
        out[lane] = sum + data[64 + 31 - lane];
    }
}

// Two producing warps fill a slot of global memory that two consuming warps empty; named barriers hand it over.
extern "C" __global__ void specialised(int* slot, int* out, int rounds) {
    int i = threadIdx.x % 64, sum = 0;
    bool produces = threadIdx.x < 64;
    for (int t = 0; t < rounds; t++) {
        if (produces) {
            if (t) asm volatile("bar.sync 2, 128;" ::: "memory");  // the slot is empty
            slot[i] = i * (t + 1);
            __threadfence_block();
            asm volatile("bar.arrive 1, 128;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 128;" ::: "memory");  // the slot is full
            sum += slot[63 - i] + slot[0] + slot[63];
            if (t + 1 < rounds) asm volatile("bar.arrive 2, 128;" ::: "memory");
        }
    }
    if (!produces) out[i] = sum;
}

// Every lane takes the lock in turn, so that lanes of one warp and warps of several blocks hand over a plain word.
extern "C" __global__ void lock_of_lanes(unsigned* mutex, int* counter) {
    bool done = false;
    while (!done) {
        if (atomicCAS(mutex, 0u, 1u) == 0u) {
            __threadfence();
            *counter = *counter + 1;
            __threadfence();
            atomicExch(mutex, 0u);
            done = true;
        }
    }
}

// ---- blocks ------------------------------------------------------------------------------------

// The last block adds up: every thread fences its own partial before the barrier that precedes the ticket. It then resets
// the ticket and overwrites what all blocks have read.
extern "C" __global__ void last_block(int* x, int* partial, unsigned* ticket, int* total) {
    __shared__ bool last;
    partial[blockIdx.x * 64 + threadIdx.x] = x[threadIdx.x] * (blockIdx.x + 1);
    __threadfence();
    __syncthreads();  // all partials of this block are visible
    if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __syncthreads();  // everyone knows whether this block is the last
    if (!last) return;
    int sum = 0;
    for (int b = 0; b < gridDim.x; b++) sum += partial[b * 64 + 63 - threadIdx.x];
    x[threadIdx.x] = -1;
    atomicAdd(total, sum);
    if (threadIdx.x == 0) *ticket = 0;
}

// A scan in one pass (Merrill and Garland, "Single-pass parallel prefix scan with decoupled look-back"): each lane of a
// warp polls the flag of one block before this one, and then reads the plain value behind it.
extern "C" __global__ void look_back(const int* x, volatile unsigned* flag, int* aggregate, int* prefix, int* out) {
    __shared__ int before;
    int i = blockIdx.x * 64 + threadIdx.x, b = blockIdx.x;
    __shared__ int room[64];
    room[threadIdx.x] = x[i];
    __syncthreads();  // the block's values are there
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int k = 0; k < 64; k++) sum += room[k];
        aggregate[b] = sum;
        if (b == 0) prefix[b] = sum;
        __threadfence();
        flag[b] = b == 0 ? 2 : 1;
        before = 0;
    }
    __syncthreads();  // before is zero
    if (threadIdx.x < 32 && b > 0) {
        int total = 0;
        for (int end = b;; end -= 32) {
            int other = end - 1 - static_cast<int>(threadIdx.x);
            unsigned state = other < 0 ? 2 : 0;
            while (state == 0) state = flag[other];
            __threadfence();
            unsigned complete = __ballot_sync(~0u, state == 2);
            int nearest = complete ? __ffs(complete) - 1 : 31;
            int value = 0;
            if (other >= 0 && threadIdx.x <= nearest) value = state == 2 ? prefix[other] : aggregate[other];
            for (int d = 16; d; d /= 2) value += __shfl_xor_sync(~0u, value, d);
            total += value;
            if (complete) break;
        }
        if (threadIdx.x == 0) {
            prefix[b] = total + aggregate[b];
            __threadfence();
            flag[b] = 2;
            before = total;
        }
    }
    __syncthreads();  // the sum of all blocks before is known
    int sum = before;
    for (int k = 0; k <= threadIdx.x; k++) sum += room[k];
    out[i] = sum;
}

// Blocks add to one row in the order of their numbers, as a deterministic backward pass does.
extern "C" __global__ void turns(unsigned* turn, float* row, const float* x) {
    if (threadIdx.x == 0)
        while (flag_of_device(*turn).load(cuda::memory_order_acquire) != blockIdx.x) {}
    __syncthreads();  // it is our turn
    row[threadIdx.x] += x[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();  // the whole row is added
    if (threadIdx.x == 0) flag_of_device(*turn).store(blockIdx.x + 1, cuda::memory_order_release);
}

// Rounds of a barrier of the grid: the two arrays change roles, so that what all blocks read is overwritten by some.
extern "C" __global__ void grid_rounds(int* a, int* b, int rounds) {
    cg::grid_group grid = cg::this_grid();
    int n = grid.size(), i = grid.thread_rank();
    for (int t = 0; t < rounds; t++) {
        int sum = 0;
        for (int k = 0; k < 4; k++) sum += a[(i + k * 37) % n];
        b[i] = (sum + a[0]) % 1009;
        grid.sync();
        int* swap = a;
        a = b;
        b = swap;
    }
}

// The same with a counter of the kernel's own for each round.
extern "C" __global__ void own_grid_rounds(int* a, int* b, int rounds, unsigned* arrived) {
    int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int t = 0; t < rounds; t++) {
        b[i] = (a[(i + 37) % n] + a[0]) % 1009;
        __syncthreads();  // the block's part is written
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(&arrived[t], 1u);
            while (*static_cast<volatile unsigned*>(&arrived[t]) < gridDim.x) {}
            __threadfence();
        }
        __syncthreads();  // every block's part is written
        int* swap = a;
        a = b;
        b = swap;
    }
}
