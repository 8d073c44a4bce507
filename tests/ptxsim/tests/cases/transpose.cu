// out[c][r] = in[r][c] through a 32×32 tile; pad = 0 gives 32-way bank conflicts, pad = 1 none.

template <int pad>
__device__ void transpose_tile(const float* in, float* out, int rows, int cols) {
    __shared__ float tile[32][32 + pad];
    int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (r + i < rows && c < cols) tile[threadIdx.y + i][threadIdx.x] = in[(r + i) * cols + c];
    __syncthreads();  // the tile is written
    int oc = blockIdx.y * 32 + threadIdx.x, orow = blockIdx.x * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (orow + i < cols && oc < rows) out[(orow + i) * rows + oc] = tile[threadIdx.x][threadIdx.y + i];
}

extern "C" __global__ void transpose_padded(const float* in, float* out, int rows, int cols) { transpose_tile<1>(in, out, rows, cols); }
extern "C" __global__ void transpose_conflicts(const float* in, float* out, int rows, int cols) { transpose_tile<0>(in, out, rows, cols); }
