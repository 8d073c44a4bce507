// The PTX of wgmma, and bf16 tiles that it multiplies: rows of 128 bytes with the swizzle of 128 bytes.
#pragma once

#include <cuda_bf16.h>

#include "hopper.cuh"

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// What the compiler knows of them ends here: a wgmma changes them, or has changed them.
template <int kCount>
__device__ inline void touch(float (&x)[kCount]) {
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i]));
}
template <int kRegisters>
__device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Panels of 64 columns; eight rows are 1,024 bytes. `leading`: from a panel to the next, where the columns are M or N.
__device__ inline uint64_t descriptor(uint32_t address, uint32_t leading = 0) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
           uint64_t(1) << 62;
}

// A panel of rows by 128 threads, without TMA.
__device__ inline void copy_panel(char* to, const __nv_bfloat16* from, int rows, int stride) {
    for (int piece = threadIdx.x; piece < rows * 8; piece += 128) {
        int row = piece / 8, column = piece % 8;
        *reinterpret_cast<uint4*>(to + row * 128 + (column ^ (row % 8)) * 16) =
            *reinterpret_cast<const uint4*>(from + row * stride + column * 8);
    }
}

// Row and column of accumulator i of this thread of a warpgroup.
__device__ inline int accumulator_row(int i) { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + 8 * (i / 2 % 2); }
__device__ inline int accumulator_column(int i) { return 8 * (i / 4) + 2 * (threadIdx.x % 4) + i % 2; }

#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D64 D8(0), D8(8), D8(16), D8(24), D8(32), D8(40), D8(48), D8(56)
#define M64N128K16                                                                                                          \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %64, 0;\n"                                                                            \
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "                                                                \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "  \
    "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "   \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "

// d += a b', both K-major in shared memory; d = a b' if not `accumulate`.
__device__ inline void multiply(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
    asm volatile(M64N128K16 "%65, %66, p, 1, 1, 0, 0;\n}" : D64 : "r"(accumulate), "l"(a), "l"(b));
}
// d += a b, a in registers and b as it lies.
__device__ inline void multiply(float (&d)[64], const uint32_t* a, uint64_t b) {
    asm volatile(M64N128K16 "{%65, %66, %67, %68}, %69, p, 1, 1, 1;\n}"
                 : D64
                 : "r"(1), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef D8
#undef D64
#undef M64N128K16
