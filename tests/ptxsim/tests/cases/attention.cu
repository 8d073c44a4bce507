// The forward of attention for 64 query rows a CTA of four warps, head dim 64, bf16: the instruction mix the simulator's
// speed is quoted for (ptxsim/bench.py). K and V come through two stages of cp.async, swizzled; P stays in registers.
#include <cuda_bf16.h>
#include <cuda_pipeline.h>

namespace {

constexpr int kRows = 64, kKeys = 64, kDim = 64, kThreads = 128;

using Element = __nv_bfloat16;

// Byte offset of eight elements in a tile of rows of 128 bytes; the rows' chunks are permuted against bank conflicts.
__device__ unsigned chunk(int row, int col8) { return row * 128 + ((col8 ^ (row & 7)) * 16); }
__device__ unsigned address_of(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ void copy_tile(Element* tile, const Element* from) {  // 64 rows of 64
    for (int i = threadIdx.x; i < kRows * kDim / 8; i += kThreads) {
        int row = i / 8, col = i % 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address_of(tile) + chunk(row, col)),
                     "l"(from + row * kDim + col * 8));
    }
}
__device__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int kPending>
__device__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
}

__device__ void load4(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
__device__ void load4_transposed(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
__device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ unsigned pack(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned*>(&pair);
}
__device__ float over_four(float x, bool maximum) {  // the four lanes that share a row
    for (int offset = 1; offset < 4; offset *= 2) {
        float y = __shfl_xor_sync(~0u, x, offset);
        x = maximum ? fmaxf(x, y) : x + y;
    }
    return x;
}

}  // namespace

// One head; n a multiple of 64; q, k, v, out [n, 64] with 16-byte aligned rows.
extern "C" __global__ void __launch_bounds__(128)
    attention(const Element* q, const Element* k, const Element* v, Element* out, int n, float scale_log2) {
    __shared__ __align__(128) Element q_tile[kRows * kDim], k_tile[2][kKeys * kDim], v_tile[2][kKeys * kDim];
    int first_row = (gridDim.x - 1 - blockIdx.x) * kRows, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int steps = first_row / kKeys + 1;
    copy_tile(q_tile, q + first_row * kDim);
    copy_tile(k_tile[0], k);
    copy_tile(v_tile[0], v);
    commit();

    float o[8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {};
    for (int step = 0; step < steps; ++step) {
        int stage = step % 2;
        if (step + 1 < steps) {
            copy_tile(k_tile[1 - stage], k + (step + 1) * kKeys * kDim);
            copy_tile(v_tile[1 - stage], v + (step + 1) * kKeys * kDim);
        }
        commit();
        wait<1>();
        __syncthreads();  // this step's tiles are there for every warp

        float s[8][4] = {};  // 16 rows, 64 keys
        for (int d = 0; d < kDim / 16; ++d) {
            unsigned a[4], b[4];
            load4(a, address_of(q_tile) + chunk(warp * 16 + lane % 16, d * 2 + lane / 16));
            for (int j = 0; j < kKeys / 16; ++j) {
                load4(b, address_of(k_tile[stage]) + chunk(j * 16 + lane % 8 + lane / 16 * 8, d * 2 + lane / 8 % 2));
                multiply(s[2 * j], a, b[0], b[1]);
                multiply(s[2 * j + 1], a, b[2], b[3]);
            }
        }
        if (step + 1 == steps)
            for (int j = 0; j < 8; ++j)
                for (int e = 0; e < 4; ++e) {
                    int row = warp * 16 + lane / 4 + e / 2 * 8, key = j * 8 + lane % 4 * 2 + e % 2;
                    if (key > row) s[j][e] = -INFINITY;
                }
        for (int half = 0; half < 2; ++half) {  // rows lane / 4 and lane / 4 + 8
            float grown = m[half], sum = 0;
            for (int j = 0; j < 8; ++j) grown = fmaxf(grown, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
            grown = over_four(grown, true);
            float shrink = exp2f((m[half] - grown) * scale_log2), shift = grown * scale_log2;
            for (int j = 0; j < 8; ++j)
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    s[j][e] = exp2f(s[j][e] * scale_log2 - shift);
                    sum += s[j][e];
                    o[j][e] *= shrink;
                }
            l[half] = l[half] * shrink + sum;
            m[half] = grown;
        }
        for (int j = 0; j < kKeys / 16; ++j) {
            unsigned p[4] = {pack(s[2 * j][0], s[2 * j][1]), pack(s[2 * j][2], s[2 * j][3]),
                             pack(s[2 * j + 1][0], s[2 * j + 1][1]), pack(s[2 * j + 1][2], s[2 * j + 1][3])};
            for (int d = 0; d < kDim / 16; ++d) {
                unsigned b[4];
                load4_transposed(b, address_of(v_tile[stage]) + chunk(j * 16 + lane % 16, d * 2 + lane / 16));
                multiply(o[2 * d], p, b[0], b[1]);
                multiply(o[2 * d + 1], p, b[2], b[3]);
            }
        }
        __syncthreads();  // every warp has read this stage, the next step may overwrite it
    }
    for (int half = 0; half < 2; ++half) {
        float inverse = 1 / over_four(l[half], false);
        int row = first_row + warp * 16 + lane / 4 + half * 8;
        for (int j = 0; j < 8; ++j)
            *reinterpret_cast<unsigned*>(out + row * kDim + j * 8 + lane % 4 * 2) =
                pack(o[j][2 * half] * inverse, o[j][2 * half + 1] * inverse);
    }
}
