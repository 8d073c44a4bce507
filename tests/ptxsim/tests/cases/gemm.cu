// C[M,N] = A[M,K] · B[N,K]ᵀ, bf16 in, fp32 out: 64×64 tiles of k = 32, four warps of 32×32, three stages of cp.async.
// Rows past the edge are zero-filled by cp.async; K is a multiple of 8.
#include <cstdint>

constexpr int TILE = 64, DEPTH = 32, STAGES = 3, STRIDE = DEPTH + 8;  // 80-byte rows: ldmatrix without conflicts
constexpr int STAGE = 2 * TILE * STRIDE;                             // A then B, in bf16

__device__ void copy16(uint32_t to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

__device__ void load4(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 64 rows of 32 bf16 are 256 pieces of 16 bytes, two a thread; a piece beyond the matrix is zeros.
__device__ void copy_tile(uint32_t to, const uint16_t* matrix, uint32_t row0, uint32_t rows, uint32_t k0, uint32_t K) {
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t piece = threadIdx.x + 128 * i, row = piece / 4, k = k0 + piece % 4 * 8;
        copy16(to + 2 * (row * STRIDE + piece % 4 * 8), matrix + (row0 + row) * K + k, row0 + row < rows && k < K);
    }
}

extern "C" __global__ void __launch_bounds__(128) gemm(const uint16_t* A, const uint16_t* B, float* C, uint32_t M, uint32_t N, uint32_t K) {
    extern __shared__ __align__(16) uint16_t room[];
    const uint32_t base = __cvta_generic_to_shared(room);
    const uint32_t lane = threadIdx.x % 32, wm = threadIdx.x / 32 / 2 * 32, wn = threadIdx.x / 32 % 2 * 32;
    const uint32_t m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, steps = (K + DEPTH - 1) / DEPTH;
    float c[2][4][4] = {};

    auto copy_stage = [&](uint32_t step) {
        if (step < steps) {
            uint32_t at = base + 2 * (step % STAGES) * STAGE;
            copy_tile(at, A, m0, M, step * DEPTH, K);
            copy_tile(at + 2 * TILE * STRIDE, B, n0, N, step * DEPTH, K);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    for (int s = 0; s < STAGES - 1; s++) copy_stage(s);
    for (uint32_t step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();  // this stage has landed for every warp, and nobody reads the one that is refilled next
        copy_stage(step + STAGES - 1);
        const uint32_t a_at = base + 2 * (step % STAGES) * STAGE, b_at = a_at + 2 * TILE * STRIDE;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t a[2][4], b[2][4];
            for (int i = 0; i < 2; i++) load4(a[i], a_at + 2 * ((wm + 16 * i + lane % 16) * STRIDE + k + lane / 16 * 8));
            for (int j = 0; j < 2; j++)
                load4(b[j], b_at + 2 * ((wn + 16 * j + lane % 8 + lane / 16 * 8) * STRIDE + k + lane / 8 % 2 * 8));
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) multiply(c[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }

    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int e = 0; e < 4; e++) {
                uint32_t row = m0 + wm + 16 * i + lane / 4 + e / 2 * 8, col = n0 + wn + 8 * j + lane % 4 * 2 + e % 2;
                if (row < M && col < N) C[row * N + col] = c[i][j][e];
            }
}
