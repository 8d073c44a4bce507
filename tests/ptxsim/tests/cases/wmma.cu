// D = 2 A B + C with nvcuda::wmma, a warp per tile of D: A (M x K, row-major) through padded shared memory, B (K x N,
// column-major) from global memory, the scaling on fragments element by element.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

template <int M, int N, int K, class Element, class Memory, class Sum>
__device__ void tile(const Memory* a, const Memory* b, const Sum* c, Sum* d, int n, int k) {
    constexpr int kLine = K + 16 / sizeof(Memory);
    __shared__ __align__(32) Memory room[M * kLine];
    wmma::fragment<wmma::matrix_a, M, N, K, Element, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, M, N, K, Element, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, M, N, K, Sum> sum, old;
    int row = blockIdx.y * M, col = blockIdx.x * N;
    wmma::fill_fragment(sum, Sum(0));
    for (int step = 0; step < k; step += K) {
        __syncwarp();
        for (int i = threadIdx.x; i < M * K; i += 32) room[i / K * kLine + i % K] = a[(row + i / K) * k + step + i % K];
        __syncwarp();
        wmma::load_matrix_sync(fa, room, kLine);
        wmma::load_matrix_sync(fb, b + col * k + step, k);
        wmma::mma_sync(sum, fa, fb, sum);
    }
    wmma::load_matrix_sync(old, c + row * n + col, n, wmma::mem_row_major);
    for (int i = 0; i < sum.num_elements; ++i) sum.x[i] = Sum(2) * sum.x[i] + old.x[i];
    wmma::store_matrix_sync(d + row * n + col, sum, n, wmma::mem_row_major);
}

extern "C" __global__ void gemm_f16(const half* a, const half* b, const float* c, float* d, int n, int k) {
    tile<16, 16, 16, half>(a, b, c, d, n, k);
}
extern "C" __global__ void gemm_f16_wide(const half* a, const half* b, const float* c, float* d, int n, int k) {
    tile<8, 32, 16, half>(a, b, c, d, n, k);
}
extern "C" __global__ void gemm_f16_tall(const half* a, const half* b, const half* c, half* d, int n, int k) {
    tile<32, 8, 16, half>(a, b, c, d, n, k);
}
extern "C" __global__ void gemm_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, const float* c, float* d, int n, int k) {
    tile<16, 16, 16, __nv_bfloat16>(a, b, c, d, n, k);
}
extern "C" __global__ void gemm_tf32(const float* a, const float* b, const float* c, float* d, int n, int k) {
    tile<16, 16, 8, wmma::precision::tf32>(a, b, c, d, n, k);
}
extern "C" __global__ void gemm_s8(const signed char* a, const signed char* b, const int* c, int* d, int n, int k) {
    tile<16, 16, 16, signed char>(a, b, c, d, n, k);
}
extern "C" __global__ void gemm_f64(const double* a, const double* b, const double* c, double* d, int n, int k) {
    tile<8, 8, 4, double>(a, b, c, d, n, k);
}
