// The mathematical library as nvcc inlines it: slow paths, fused arithmetic, half types.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void functions(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    float results[] = {expf(v), logf(fabsf(v)), sinf(v), cosf(v), tanhf(v), erff(v), sqrtf(fabsf(v)), rsqrtf(fabsf(v)),
                       powf(fabsf(v), 1.7f), atanf(v), cbrtf(v), log1pf(fabsf(v)), 1.f / v, fmodf(v, 3.f), rintf(v), exp2f(v)};
    for (int k = 0; k < 16; k++) out[i * 16 + k] = results[k];
}

extern "C" __global__ void doubles(const double* x, double* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double v = x[i];
    double results[] = {exp(v), log(fabs(v)), sin(v), sqrt(fabs(v)), 1 / v, v * v + 3};
    for (int k = 0; k < 6; k++) out[i * 6 + k] = results[k];
}

extern "C" __global__ void halves(const __half2* x, const __half2* y, __half2* out, int* flags) {
    int i = threadIdx.x;
    __half2 a = x[i], b = y[i];
    out[i * 4] = __hfma2(a, b, a);
    out[i * 4 + 1] = __hadd2_sat(a, b);
    out[i * 4 + 2] = __hmax2(a, b);
    out[i * 4 + 3] = __hmul2(a, __hneg2(b));
    flags[i] = __hblt2(a, b) | __hgt(a.x, b.x) << 1 | __hisnan(a.y) << 2;
}

extern "C" __global__ void bfloats(const float2* x, __nv_bfloat162* out, float* back) {
    int i = threadIdx.x;
    out[i] = __float22bfloat162_rn(x[i]);
    __nv_bfloat162 twice = __hadd2(out[i], out[i]);
    back[2 * i] = __low2float(twice);
    back[2 * i + 1] = __high2float(twice);
}
