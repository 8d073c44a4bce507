// A fixed number of blocks take tiles from a global counter until none are left.

extern "C" __global__ void persistent(const float* x, float* y, int tiles, unsigned* counter, unsigned* done_by) {
    __shared__ unsigned tile;
    while (true) {
        if (threadIdx.x == 0) tile = atomicAdd(counter, 1u);
        __syncthreads();  // the tile's number is written
        unsigned mine = tile;
        if (mine >= tiles) return;
        int i = mine * blockDim.x + threadIdx.x;
        y[i] = 2 * x[i] + mine;
        if (threadIdx.x == 0) atomicAdd(&done_by[mine], 1u);
        __syncthreads();  // everyone has read the number before it changes
    }
}

// The last block to finish adds up what the others left in memory: fence, ticket, fence.
extern "C" __global__ void last_block_sums(const int* x, volatile int* partial, unsigned* ticket, int* total) {
    __shared__ bool last;
    __shared__ int room[128];
    room[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
    __syncthreads();  // room is filled
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < 128; i++) sum += room[i];
        partial[blockIdx.x] = sum;
        __threadfence();  // the sum is visible before the ticket is
        last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();  // everyone knows whether this block is the last
    if (last && threadIdx.x == 0) {
        __threadfence();
        int sum = 0;
        for (int b = 0; b < gridDim.x; b++) sum += partial[b];
        *total = sum;
    }
}
