// Softmax of rows of any length, a warp a row, in one pass with a running maximum.

extern "C" __global__ void softmax(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float m = -INFINITY, l = 0;
    for (int i = lane; i < n; i += 32) {
        float v = x[row * n + i], grown = fmaxf(m, v);
        l = l * exp2f((m - grown) * 1.4426950408889634f) + exp2f((v - grown) * 1.4426950408889634f);
        m = grown;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        float m2 = __shfl_xor_sync(~0u, m, offset), l2 = __shfl_xor_sync(~0u, l, offset), grown = fmaxf(m, m2);
        l = (m == -INFINITY ? 0 : l * exp2f((m - grown) * 1.4426950408889634f))
            + (m2 == -INFINITY ? 0 : l2 * exp2f((m2 - grown) * 1.4426950408889634f));
        m = grown;
    }
    for (int i = lane; i < n; i += 32) y[row * n + i] = exp2f((x[row * n + i] - m) * 1.4426950408889634f) / l;
}
