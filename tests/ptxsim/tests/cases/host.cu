// Host code as a library has it: attributes, limits, launches, errors.
#include <cuda_runtime.h>

__global__ void fill(float* out, int n, float value) {
    extern __shared__ float room[];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    room[threadIdx.x] = value;
    __syncthreads();
    if (i < n) out[i] = room[blockDim.x - 1 - threadIdx.x] + i;
}

extern "C" int launch_fill(float* out, int n, float value, int smem, int opt_in) {
    if (opt_in) {
        cudaError_t error = cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
        if (error != cudaSuccess) return error;
    }
    fill<<<(n + 127) / 128, 128, smem>>>(out, n, value);
    return cudaGetLastError();
}

extern "C" int limit_of(int attribute) {
    int device = -1, value = -1;
    if (cudaGetDevice(&device) != cudaSuccess) return -2;
    cudaDeviceGetAttribute(&value, cudaDeviceAttr(attribute), device);
    return value;
}

extern "C" const char* text_of(int error) { return cudaGetErrorString(cudaError_t(error)); }

extern "C" int zero(void* p, size_t bytes) { return cudaMemsetAsync(p, 0, bytes, nullptr); }
