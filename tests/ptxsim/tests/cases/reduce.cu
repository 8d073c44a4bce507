// Sum of n floats: lanes by shuffle, warps through shared memory, blocks by one atomic.

__device__ float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

extern "C" __global__ void reduce(const float* x, int n, float* sum) {
    __shared__ float partial[32];
    float mine = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) mine += x[i];
    mine = warp_sum(mine);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
    __syncthreads();  // partial[] is complete
    if (threadIdx.x < 32) {
        mine = warp_sum(threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f);
        if (threadIdx.x == 0) atomicAdd(sum, mine);
    }
}

// The tree in shared memory, a barrier a level: many barriers for the detector to follow.
extern "C" __global__ void reduce_tree(const int* x, int* sums) {
    __shared__ int room[256];
    room[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();  // the level above is written
        if (threadIdx.x < half) room[threadIdx.x] += room[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = room[0];
}
