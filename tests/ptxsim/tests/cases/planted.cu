// Bugs, one a kernel, and beside each its correct twin. `@name` marks the lines where the bug may be reported.
#include <cstdint>

__device__ uint32_t shared_address(const void* p) { return __cvta_generic_to_shared(p); }

// ---- barriers ----------------------------------------------------------------------------------

template <bool bug>
__device__ void barrier_removed(const int* x, int* out) {
    __shared__ int room[128];
    room[threadIdx.x] = 0;
    __syncthreads();                          // room is zero
    room[threadIdx.x] = x[threadIdx.x];       // @barrier_removed
    if (!bug) __syncthreads();                // room is filled
    out[threadIdx.x] = room[127 - threadIdx.x];  // @barrier_removed
}

template <bool bug>
__device__ void barrier_moved(const int* x, int* out) {
    __shared__ int room[128];
    int sum = 0;
    for (int t = 0; t < 3; t++) {
        room[threadIdx.x] = x[t * 128 + threadIdx.x];  // @barrier_moved
        __syncthreads();                               // room is filled
        if (bug) __syncthreads();                      // one line too early: the reads below are not over
        sum += room[127 - threadIdx.x];                // @barrier_moved
        if (!bug) __syncthreads();                     // all have read, room may be filled again
    }
    out[threadIdx.x] = sum;
}

template <bool bug>
__device__ void divergent_barrier(const int* x, int* out) {
    __shared__ int room[64];
    room[threadIdx.x] = x[threadIdx.x];
    if (bug) {
        if (threadIdx.x % 32 < 16) asm volatile("bar.sync 0;" ::: "memory");  // @divergent_barrier
    } else {
        asm volatile("bar.sync 0;" ::: "memory");
    }
    out[threadIdx.x] = room[threadIdx.x] + x[threadIdx.x];
}

template <bool bug>
__device__ void missing_arrival(int* out) {
    if (!bug || threadIdx.x < 32) asm volatile("bar.sync 2, 64;" ::: "memory");  // @missing_arrival
    asm volatile("bar.sync 3, 64;" ::: "memory");                                // @missing_arrival
    out[threadIdx.x] = 1;
}

template <bool bug>
__device__ void named_count_too_small(const int* x, int* out) {
    __shared__ int room[96];
    room[threadIdx.x] = 0;
    __syncthreads();                           // room is zero
    room[threadIdx.x] = x[threadIdx.x];        // @named_count_too_small
    if (bug) {
        if (threadIdx.x < 64) asm volatile("bar.sync 1, 64;" ::: "memory");
    } else {
        asm volatile("bar.sync 1, 96;" ::: "memory");
    }
    out[threadIdx.x] = room[95 - threadIdx.x];  // @named_count_too_small
}

template <bool bug>
__device__ void warp_sync_removed(const int* x, int* out) {
    volatile __shared__ int room[32];
    room[threadIdx.x] = 0;
    __syncwarp();                               // room is zero
    room[threadIdx.x] = x[threadIdx.x];         // @warp_sync_removed
    if (!bug) __syncwarp();
    out[threadIdx.x] = room[31 - threadIdx.x];  // @warp_sync_removed
}

// ---- races -------------------------------------------------------------------------------------

template <bool bug>
__device__ void two_warps_one_word(int* out) {
    __shared__ int word;
    if (threadIdx.x == 0) word = 1;
    if (bug && threadIdx.x == 32) word = 2;  // @two_warps_one_word
    __syncthreads();  // @two_warps_one_word (nvcc gives the predicated store this line)
    out[threadIdx.x] = word;
}

template <bool bug>
__device__ void two_blocks_one_address(int* out) {
    if (threadIdx.x == 0) out[bug ? 0 : blockIdx.x] = blockIdx.x + 1;  // @two_blocks_one_address
}

template <bool bug>
__device__ void read_of_another_block(int* out) {
    if (threadIdx.x == 0 && blockIdx.x == 0) out[0] = 5;              // @read_of_another_block
    if (threadIdx.x == 0 && blockIdx.x == 1) out[1] = bug ? out[0] : 5;  // @read_of_another_block
}

// ---- asynchronous copies -----------------------------------------------------------------------

// @wait_off_by_one @own_copy_read_before_wait @commit_forgotten @wait_without_barrier @refill_before_all_have_read @misaligned_copy
__device__ void copy16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

template <bool bug>
__device__ void wait_off_by_one(const int* x, int* out) {
    __shared__ __align__(16) int room[2][128];
    for (int stage = 0; stage < 2; stage++) {
        copy16(&room[stage][threadIdx.x * 4], x + stage * 128 + threadIdx.x * 4);  // @wait_off_by_one
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    int sum = 0;
    for (int stage = 0; stage < 2; stage++) {
        if (bug || stage == 0) asm volatile("cp.async.wait_group 1;" ::: "memory");
        else asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();                                      // the stage is there for every thread
        for (int i = 0; i < 4; i++) sum += room[stage][127 - threadIdx.x * 4 - i];  // @wait_off_by_one
    }
    out[threadIdx.x] = sum;
}

template <bool bug>
__device__ void own_copy_read_before_wait(const int* x, int* out) {
    __shared__ __align__(16) int room[128];
    copy16(&room[threadIdx.x * 4], x + threadIdx.x * 4);     // @own_copy_read_before_wait
    if (!bug) asm volatile("cp.async.wait_all;" ::: "memory");
    out[threadIdx.x] = room[threadIdx.x * 4];                // @own_copy_read_before_wait
}

template <bool bug>
__device__ void commit_forgotten(const int* x, int* out) {
    __shared__ __align__(16) int room[128];
    copy16(&room[threadIdx.x * 4], x + threadIdx.x * 4);     // @commit_forgotten
    if (!bug) asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    out[threadIdx.x] = room[threadIdx.x * 4];                // @commit_forgotten
}

template <bool bug>
__device__ void wait_without_barrier(const int* x, int* out) {
    __shared__ __align__(16) int room[256];
    copy16(&room[threadIdx.x * 4], x + threadIdx.x * 4);     // @wait_without_barrier
    asm volatile("cp.async.wait_all;" ::: "memory");
    if (!bug) __syncthreads();                               // the others' copies are visible, too
    out[threadIdx.x] = room[255 - threadIdx.x * 4];          // @wait_without_barrier
}

template <bool bug>
__device__ void refill_before_all_have_read(const int* x, int* out) {
    __shared__ __align__(16) int room[256];
    copy16(&room[threadIdx.x * 4], x + threadIdx.x * 4);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();                                         // the first tile is there
    int sum = room[255 - threadIdx.x * 4];                   // @refill_before_all_have_read
    if (!bug) __syncthreads();                               // all have read
    copy16(&room[threadIdx.x * 4], x + 256 + threadIdx.x * 4);  // @refill_before_all_have_read
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();                                         // the second tile is there
    out[threadIdx.x] = sum + room[255 - threadIdx.x * 4];
}

// ---- addresses ---------------------------------------------------------------------------------

template <bool bug>
__device__ void row_past_the_end(const int* x, int* out, int rows) {
    int sum = 0;
    for (int r = 0; bug ? r <= rows : r < rows; r++) sum += x[r * 32 + threadIdx.x];  // @row_past_the_end
    out[threadIdx.x] = sum;
}

template <bool bug>
__device__ void write_before_the_start(int* out) {
    out[int(threadIdx.x) - (bug ? 1 : 0)] = 1;  // @write_before_the_start
}

template <bool bug>
__device__ void shared_past_the_end(int* out) {
    volatile __shared__ int room[64];
    int i = threadIdx.x + (bug ? 16384 : 0);
    room[i] = 1;  // @shared_past_the_end
    out[threadIdx.x] = room[i];
}

template <bool bug>
__device__ void misaligned_vector(const int* x, int* out) {
    int4 v = *reinterpret_cast<const int4*>(x + 4 * threadIdx.x + (bug ? 1 : 0));  // @misaligned_vector
    out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

template <bool bug>
__device__ void misaligned_copy(const int* x, int* out) {
    __shared__ __align__(16) int room[136];
    copy16(&room[threadIdx.x * 4 + (bug ? 2 : 0)], x + threadIdx.x * 4);  // @misaligned_copy
    asm volatile("cp.async.wait_all;" ::: "memory");
    out[threadIdx.x] = room[threadIdx.x * 4 + (bug ? 2 : 0)];
}

// @unwritten_rows @misaligned_matrix
__device__ void load_matrix(uint32_t (&r)[4], const void* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(at)) : "memory");
}

template <bool bug>
__device__ void misaligned_matrix(uint32_t* out) {
    __shared__ __align__(16) uint32_t room[136];
    for (int i = threadIdx.x; i < 136; i += 32) room[i] = i;
    __syncwarp();
    uint32_t r[4];
    load_matrix(r, &room[threadIdx.x * 4 + (bug ? 1 : 0)]);
    out[threadIdx.x] = r[0] + r[1] + r[2] + r[3];
}

// ---- values nobody wrote -----------------------------------------------------------------------

template <bool bug>
__device__ void unwritten_rows(uint32_t* out) {
    __shared__ __align__(16) uint32_t room[32][4];
    if (!bug || threadIdx.x < 24)
        for (int i = 0; i < 4; i++) room[threadIdx.x][i] = threadIdx.x;
    __syncwarp();
    uint32_t r[4];
    load_matrix(r, room[threadIdx.x]);
    out[threadIdx.x] = r[0] + r[1] + r[2] + r[3];  // @unwritten_rows
}

template <bool bug>
__device__ void unwritten_shared(int* out) {
    __shared__ int room[32];
    if (!bug || threadIdx.x != 7) room[threadIdx.x] = 3;
    __syncwarp();
    out[threadIdx.x] = room[31 - threadIdx.x] * 2;  // @unwritten_shared
}

template <bool bug>
__device__ void branch_on_fresh_output(int* out) {
    if (!bug) out[threadIdx.x] = 1;
    out[threadIdx.x] = out[threadIdx.x] > 0 ? __popc(out[threadIdx.x]) : 2;  // @branch_on_fresh_output
}

// ---- shuffles ----------------------------------------------------------------------------------

template <bool bug>
__device__ void wrong_mask(const int* x, int* out) {
    int v = x[threadIdx.x];
    if (threadIdx.x < 16) v += __shfl_xor_sync(bug ? 0xffffffffu : 0xffffu, v, 1);  // @wrong_mask
    out[threadIdx.x] = v;
}

template <bool bug>
__device__ void caller_outside_its_mask(const int* x, int* out) {
    out[threadIdx.x] = __shfl_sync(bug ? 0x7fffffffu : ~0u, x[threadIdx.x], 0);  // @caller_outside_its_mask
}

// ---- the pairs ---------------------------------------------------------------------------------

#define PAIR(name, parameters, arguments)                                          \
    extern "C" __global__ void name##_bug parameters { name<true> arguments; }     \
    extern "C" __global__ void name##_ok parameters { name<false> arguments; }

PAIR(barrier_removed, (const int* x, int* out), (x, out))
PAIR(barrier_moved, (const int* x, int* out), (x, out))
PAIR(divergent_barrier, (const int* x, int* out), (x, out))
PAIR(missing_arrival, (int* out), (out))
PAIR(named_count_too_small, (const int* x, int* out), (x, out))
PAIR(warp_sync_removed, (const int* x, int* out), (x, out))
PAIR(two_warps_one_word, (int* out), (out))
PAIR(two_blocks_one_address, (int* out), (out))
PAIR(read_of_another_block, (int* out), (out))
PAIR(wait_off_by_one, (const int* x, int* out), (x, out))
PAIR(own_copy_read_before_wait, (const int* x, int* out), (x, out))
PAIR(commit_forgotten, (const int* x, int* out), (x, out))
PAIR(wait_without_barrier, (const int* x, int* out), (x, out))
PAIR(refill_before_all_have_read, (const int* x, int* out), (x, out))
PAIR(row_past_the_end, (const int* x, int* out, int rows), (x, out, rows))
PAIR(write_before_the_start, (int* out), (out))
PAIR(shared_past_the_end, (int* out), (out))
PAIR(misaligned_vector, (const int* x, int* out), (x, out))
PAIR(misaligned_copy, (const int* x, int* out), (x, out))
PAIR(misaligned_matrix, (uint32_t* out), (out))
PAIR(unwritten_rows, (uint32_t* out), (out))
PAIR(unwritten_shared, (int* out), (out))
PAIR(branch_on_fresh_output, (int* out), (out))
PAIR(wrong_mask, (const int* x, int* out), (x, out))
PAIR(caller_outside_its_mask, (const int* x, int* out), (x, out))
