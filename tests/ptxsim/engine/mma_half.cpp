// The product attention lives on: m16n8k16 and m16n8k8 of f16 or bf16 with single-precision accumulators, as 8-wide
// vectors. A column order of even columns, then odd ones, makes a row of C two runs of four lanes in two registers.
#include "mma_half.h"
#include "fp.h"
#include "lanes.h"

namespace ptxsim {

namespace {

typedef float Floats __attribute__((vector_size(32)));
typedef u32 Words __attribute__((vector_size(32)));
typedef float Quad __attribute__((vector_size(16)));
typedef u32 QuadWords __attribute__((vector_size(16)));

template <class H>
Floats low_halves(Words x);
template <class H>
Floats high_halves(Words x);

template <>
Floats low_halves<Bfloat>(Words x) {
    return reinterpret_cast<Floats>(x << 16);
}
template <>
Floats high_halves<Bfloat>(Words x) {
    return reinterpret_cast<Floats>(x & 0xffff0000u);
}

template <>
Floats low_halves<Half>(Words x) {
    Floats out;
    for (int j = 0; j < 8; ++j) out[j] = to_float(Half{static_cast<u16>(x[j])});
    return out;
}
template <>
Floats high_halves<Half>(Words x) {
    return low_halves<Half>(x >> 16);
}

Words load_words(const u32* p) {
    Words x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// B's row k: columns 0 2 4 6 1 3 5 7, whose elements lie in lanes 4n + t.
Words column_words(const u32* r, int t) {
    const u32* p = r + t;
    return Words{p[0], p[8], p[16], p[24], p[4], p[12], p[20], p[28]};
}

Floats load_row(const u32* even, const u32* odd, int group) {
    Quad a, b;
    std::memcpy(&a, even + 4 * group, sizeof a);
    std::memcpy(&b, odd + 4 * group, sizeof b);
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
}

void store_row(u32* even, u32* odd, int group, Floats row) {
    Words bits = row == row ? reinterpret_cast<Words>(row) : Words{} + 0x7fffffffu;
    QuadWords a = __builtin_shufflevector(bits, bits, 0, 1, 2, 3), b = __builtin_shufflevector(bits, bits, 4, 5, 6, 7);
    std::memcpy(even + 4 * group, &a, sizeof a);
    std::memcpy(odd + 4 * group, &b, sizeof b);
}

Floats fused(float x, Floats y, Floats z) {
    for (int j = 0; j < 8; ++j) z[j] = __builtin_fmaf(x, y[j], z[j]);
    return z;
}

// A's 32 lanes of one register, split into even and odd k: [2 * reg + parity][4 * group + t].
template <class H>
void split_a(const u32* r, float* even, float* odd) {
    for (int i = 0; i < kLanes; i += 8) {
        Words x = load_words(r + i);
        Floats low = low_halves<H>(x), high = high_halves<H>(x);
        std::memcpy(even + i, &low, sizeof low);
        std::memcpy(odd + i, &high, sizeof high);
    }
}

}  // namespace

template <class H>
void multiply_halves(Warp& w, const Ref* d, const Ref* a, const Ref* b, const Ref* c, int k_registers) {
    alignas(32) float even[4][kLanes], odd[4][kLanes];
    Floats rows[16];  // of B
    for (int r = 0; r < 2 * k_registers; ++r) split_a<H>(w.cells<u32>(a[r]), even[r], odd[r]);
    for (int r = 0; r < k_registers; ++r) {
        const u32* words = w.cells<u32>(b[r]);
        for (int t = 0; t < 4; ++t) {
            Words x = column_words(words, t);
            rows[8 * r + 2 * t] = low_halves<H>(x);
            rows[8 * r + 2 * t + 1] = high_halves<H>(x);
        }
    }
    const u32* c_cells[4] = {w.cells<u32>(c[0]), w.cells<u32>(c[1]), w.cells<u32>(c[2]), w.cells<u32>(c[3])};
    Floats acc[16];
    for (int g = 0; g < 8; ++g) {
        acc[g] = load_row(c_cells[0], c_cells[1], g);
        acc[g + 8] = load_row(c_cells[2], c_cells[3], g);
    }
    for (int g = 0; g < 8; g += 2) {  // four rows at a time hide the latency of the chains
        Floats s0 = acc[g], s1 = acc[g + 1], s2 = acc[g + 8], s3 = acc[g + 9];
        for (int r = 0; r < k_registers; ++r)
            for (int t = 0; t < 4; ++t) {
                int at = 4 * g + t;
                Floats y = rows[8 * r + 2 * t], z = rows[8 * r + 2 * t + 1];
                s0 = fused(odd[2 * r][at], z, fused(even[2 * r][at], y, s0));
                s1 = fused(odd[2 * r][at + 4], z, fused(even[2 * r][at + 4], y, s1));
                s2 = fused(odd[2 * r + 1][at], z, fused(even[2 * r + 1][at], y, s2));
                s3 = fused(odd[2 * r + 1][at + 4], z, fused(even[2 * r + 1][at + 4], y, s3));
            }
        acc[g] = s0, acc[g + 1] = s1, acc[g + 8] = s2, acc[g + 9] = s3;
    }
    u32* d_cells[4] = {w.cells<u32>(d[0]), w.cells<u32>(d[1]), w.cells<u32>(d[2]), w.cells<u32>(d[3])};
    for (int g = 0; g < 8; ++g) {
        store_row(d_cells[0], d_cells[1], g, acc[g]);
        store_row(d_cells[2], d_cells[3], g, acc[g + 8]);
    }
}

template void multiply_halves<Half>(Warp&, const Ref*, const Ref*, const Ref*, const Ref*, int);
template void multiply_halves<Bfloat>(Warp&, const Ref*, const Ref*, const Ref*, const Ref*, int);

}  // namespace ptxsim
