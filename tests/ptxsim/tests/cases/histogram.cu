// 64 bins: shared atomics a block, then global atomics. Also every other kind of atomic on one word.

extern "C" __global__ void histogram(const unsigned char* x, int n, unsigned* bins) {
    __shared__ unsigned mine[64];
    if (threadIdx.x < 64) mine[threadIdx.x] = 0;
    __syncthreads();  // the bins are zero
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&mine[x[i] % 64], 1u);
    __syncthreads();  // all of the block is counted
    if (threadIdx.x < 64) atomicAdd(&bins[threadIdx.x], mine[threadIdx.x]);
}

// A lock-free maximum of doubles by compare-and-swap, and tickets that must all differ.
extern "C" __global__ void contend(const double* x, double* largest, unsigned* ticket, unsigned* order) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    auto word = reinterpret_cast<unsigned long long*>(largest);
    unsigned long long seen = atomicAdd(word, 0ull);
    while (__longlong_as_double(seen) < x[i]) {
        unsigned long long before = atomicCAS(word, seen, __double_as_longlong(x[i]));
        if (before == seen) break;
        seen = before;
    }
    order[atomicInc(ticket, ~0u)] = i;
}
