// Inclusive prefix sums of a row of up to 1024 integers by one block.

__device__ int warp_scan(int x, int lane) {
    for (int offset = 1; offset < 32; offset *= 2) {
        int left = __shfl_up_sync(~0u, x, offset);
        if (lane >= offset) x += left;
    }
    return x;
}

extern "C" __global__ void scan(const int* x, int* out, int n) {
    __shared__ int totals[32];
    int i = threadIdx.x, lane = i % 32, warp = i / 32;
    const int* row = x + blockIdx.x * n;
    int mine = warp_scan(i < n ? row[i] : 0, lane);
    if (lane == 31) totals[warp] = mine;
    __syncthreads();  // the warps' totals are written
    if (warp == 0) {
        int total = lane < blockDim.x / 32 ? totals[lane] : 0;
        totals[lane] = warp_scan(total, lane);
    }
    __syncthreads();  // the totals are prefix sums
    if (i < n) out[blockIdx.x * n + i] = mine + (warp > 0 ? totals[warp - 1] : 0);
}
