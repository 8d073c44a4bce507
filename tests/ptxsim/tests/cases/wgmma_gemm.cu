// C = A B', bf16 in, fp32 out: a producer warpgroup copies tiles by ordinary stores, two consumer warpgroups of 64 rows
// multiply them by wgmma. Two stages, handed over by mbarriers; registers move from the producer to the consumers.
#include <cuda_bf16.h>
#include <stdint.h>

constexpr int kM = 128, kN = 128, kK = 64, kStages = 2;  // of a tile
constexpr int kABytes = kM * kK * 2, kBBytes = kN * kK * 2, kStage = kABytes + kBBytes;

__device__ uint32_t address_of(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::"r"(
            barrier),
        "r"(parity)
        : "memory");
}

__device__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// K-major tiles of 64 columns, rows of 128 bytes, swizzled: eight rows are 1,024 bytes.
__device__ uint64_t descriptor(uint32_t address) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ void copy_tile(char* to, const __nv_bfloat16* from, int rows, int stride) {
    for (int piece = threadIdx.x; piece < rows * 8; piece += 128) {
        int row = piece / 8, column = piece % 8;
        *reinterpret_cast<uint4*>(to + row * 128 + (column ^ (row % 8)) * 16) =
            *reinterpret_cast<const uint4*>(from + row * stride + column * 8);
    }
}

__device__ void multiply(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
        "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, 0;\n}"
        : D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56)
        : "l"(a), "l"(b), "r"(accumulate));
#undef D8
}

extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n, int k) {
    extern __shared__ __align__(1024) char tiles[];
    __shared__ uint64_t barriers[2 * kStages];
    uint32_t full = address_of(barriers), empty = full + 8 * kStages;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" ::"r"(full + 8 * s) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 8;" ::"r"(empty + 8 * s) : "memory");
        }
    }
    __syncthreads();
    int row = blockIdx.x * kM, column = blockIdx.y * kN;
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#pragma unroll 1
        for (int tile = 0; tile < k / kK; ++tile) {
            int stage = tile % kStages;
            wait(empty + 8 * stage, (tile / kStages + 1) & 1);
            copy_tile(tiles + stage * kStage, a + row * k + tile * kK, kM, k);
            copy_tile(tiles + stage * kStage + kABytes, b + column * k + tile * kK, kN, k);
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            arrive(full + 8 * stage);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int rows = threadIdx.x < 256 ? 0 : 64;
        float d[64];
        for (int i = 0; i < 64; ++i) d[i] = 0;
#pragma unroll 1
        for (int tile = 0; tile < k / kK; ++tile) {
            int stage = tile % kStages;
            wait(full + 8 * stage, (tile / kStages) & 1);
            uint32_t at = address_of(tiles + stage * kStage);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
            for (int i = 0; i < kK / 16; ++i)
                multiply(d, descriptor(at + rows * 128) + 2 * i, descriptor(at + kABytes) + 2 * i, tile + i > 0);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (tile > 0 && threadIdx.x % 32 == 0) arrive(empty + 8 * ((tile - 1) % kStages));
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(d[i]));
        int thread = threadIdx.x % 128, lane = thread % 32;
        for (int i = 0; i < 64; ++i) {
            int r = row + rows + thread / 32 * 16 + lane / 4 + 8 * (i / 2 % 2), j = column + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
            c[r * n + j] = d[i];
        }
    }
}
