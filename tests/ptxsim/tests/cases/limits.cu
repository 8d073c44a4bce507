// Kernels that ask for much: registers, static and dynamic shared memory, threads.

extern "C" __global__ void many_registers(const float* x, float* out) {
    float r[96];
#pragma unroll
    for (int i = 0; i < 96; i++) r[i] = x[i * 32 + threadIdx.x % 32];
#pragma unroll 1
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int i = 0; i < 96; i++) r[i] = r[i] * r[(i + 1) % 96] + r[(i + 17) % 96];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 96; i++) sum += r[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

extern "C" __global__ void few_registers(float* out) { out[blockIdx.x * blockDim.x + threadIdx.x] = 1; }

extern "C" __global__ void dynamic_shared(float* out, int n) {
    extern __shared__ float room[];
    for (int i = threadIdx.x; i < n; i += 32) room[i] = i;
    __syncwarp();
    out[threadIdx.x] = room[n - 1 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(64) bounded(float* out) { out[threadIdx.x] = 1; }

extern "C" __global__ void static_shared(float* out) {
    __shared__ float room[12000];
    room[threadIdx.x] = 1;
    out[threadIdx.x] = room[threadIdx.x];
}

extern "C" __global__ void nothing() {}
