// The names of cuRAND that xFormers' kernels mention. Dropout is off, so nothing of it is called.
#pragma once

struct curandStatePhilox4_32_10_t {};

inline __device__ void curand_init(unsigned long long, unsigned long long, unsigned long long, curandStatePhilox4_32_10_t*) { __trap(); }

inline __device__ void skipahead(unsigned long long, curandStatePhilox4_32_10_t*) { __trap(); }

inline __device__ float4 curand_uniform4(curandStatePhilox4_32_10_t*) {
    __trap();
    return {};
}
