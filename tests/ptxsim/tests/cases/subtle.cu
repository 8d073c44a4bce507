// Correct programs that a careless checker would call wrong.
#include <cstdint>

// Neighbouring bytes and halves of one word belong to different warps.
extern "C" __global__ void bytes_of_a_word(const unsigned char* x, unsigned char* out) {
    __shared__ unsigned char room[128];
    __shared__ unsigned short halves[64];
    int i = threadIdx.x;
    room[i % 32 * 4 + i / 32] = x[i];  // byte w of word l is warp w's
    if (i < 64) halves[i % 32 * 2 + i / 32] = x[i];
    __syncthreads();  // both rooms are written
    out[i] = room[127 - i] + halves[i / 2];
}

// Whole warps leave before the barrier of the rest.
extern "C" __global__ void early_warps(const int* x, int* out, int warps) {
    __shared__ int room[128];
    if (threadIdx.x / 32 >= warps) return;
    room[threadIdx.x] = x[threadIdx.x];
    __syncthreads();  // the warps that are left have written
    out[threadIdx.x] = room[warps * 32 - 1 - threadIdx.x];
}

// What was never written is loaded, and then not used.
extern "C" __global__ void masked_garbage(const int* x, int* out, int n) {
    __shared__ int room[64];
    int i = threadIdx.x;
    if (i < n) room[i] = x[i];
    __syncthreads();  // room[0, n) is written
    int v = room[63 - i];
    out[i] = 63 - i < n ? v : -1;
}

// Warps hand data over through global memory inside a block, and each keeps a private room with __syncwarp only.
extern "C" __global__ void through_global(const int* x, int* scratch, int* out) {
    __shared__ int room[4][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, base = blockIdx.x * 128;
    for (int t = 0; t < 3; t++) {
        room[warp][lane] = x[base + threadIdx.x] * (t + 1);
        __syncwarp();  // the warp's row is written
        scratch[base + threadIdx.x] = room[warp][31 - lane];
        __syncthreads();  // scratch is written, visible to the block
        int v = scratch[base + (threadIdx.x + 64) % 128];
        __syncthreads();  // all have read
        scratch[base + threadIdx.x] += v;
    }
    out[base + threadIdx.x] = scratch[base + threadIdx.x];
}

// Barriers that also count and vote.
extern "C" __global__ void voting_barriers(const int* x, int* out) {
    int v = x[threadIdx.x];
    int count = __syncthreads_count(v > 0), all = __syncthreads_and(v < 100), any = __syncthreads_or(v == 7);
    out[threadIdx.x] = count * 4 + (all != 0) * 2 + (any != 0);
}

// One barrier an iteration is enough when the buffers alternate.
extern "C" __global__ void alternating_buffers(const int* x, int* out, int n) {
    __shared__ int room[2][64];
    int sum = 0;
    for (int t = 0; t < n; t++) {
        room[t % 2][threadIdx.x] = x[t * 64 + threadIdx.x];
        __syncthreads();  // this buffer is written; the other one was read before it
        sum += room[t % 2][63 - threadIdx.x] * (t + 1);
    }
    out[threadIdx.x] = sum;
}

// An mbarrier counts the arrivals of four warps; each thread waits for the phase.
extern "C" __global__ void phases(const int* x, int* out, int n) {
    __shared__ int room[2][128];
    __shared__ __align__(8) uint64_t barrier;
    uint32_t at = __cvta_generic_to_shared(&barrier);
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0], 128;" ::"r"(at) : "memory");
    __syncthreads();  // the barrier is initialised
    int sum = 0;
    for (int t = 0; t < n; t++) {
        room[t % 2][threadIdx.x] = x[t * 128 + threadIdx.x];
        uint64_t state;
        asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(at) : "memory");
        uint32_t done = 0;
        while (!done)
            asm volatile("{ .reg .pred p; mbarrier.test_wait.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done) : "r"(at), "l"(state) : "memory");
        sum += room[t % 2][127 - threadIdx.x];
    }
    out[threadIdx.x] = sum;
}

// A spin lock around a plain counter: the atomics and fences order the critical sections.
extern "C" __global__ void lock(unsigned* mutex, volatile int* counter) {
    if (threadIdx.x % 32 == 0) {
        while (atomicCAS(mutex, 0u, 1u) != 0u) __nanosleep(20);
        __threadfence();
        *counter = *counter + 1;
        __threadfence();
        atomicExch(mutex, 0u);
    }
}
