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
#if defined(__F16C__) && defined(__AVX2__)
    __m256i packed = _mm256_permute4x64_epi64(
        _mm256_packus_epi32(reinterpret_cast<__m256i>(x & 0xffffu), _mm256_setzero_si256()), 0x08);
    out = reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm256_castsi256_si128(packed)));
#else
    for (int j = 0; j < 8; ++j) out[j] = to_float(Half{static_cast<u16>(x[j])});
#endif
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

// B's rows 2t and 2t + 1, whose elements lie in lanes 4n + t: a transposition, which leaves columns 0 2 4 6 1 3 5 7.
void column_words(const u32* r, Words out[4]) {
    Words x0 = load_words(r), x1 = load_words(r + 8), x2 = load_words(r + 16), x3 = load_words(r + 24);
    Words u0 = __builtin_shufflevector(x0, x1, 0, 8, 1, 9, 4, 12, 5, 13);
    Words u1 = __builtin_shufflevector(x2, x3, 0, 8, 1, 9, 4, 12, 5, 13);
    Words u2 = __builtin_shufflevector(x0, x1, 2, 10, 3, 11, 6, 14, 7, 15);
    Words u3 = __builtin_shufflevector(x2, x3, 2, 10, 3, 11, 6, 14, 7, 15);
    out[0] = __builtin_shufflevector(u0, u1, 0, 1, 8, 9, 4, 5, 12, 13);
    out[1] = __builtin_shufflevector(u0, u1, 2, 3, 10, 11, 6, 7, 14, 15);
    out[2] = __builtin_shufflevector(u2, u3, 0, 1, 8, 9, 4, 5, 12, 13);
    out[3] = __builtin_shufflevector(u2, u3, 2, 3, 10, 11, 6, 7, 14, 15);
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
        Words x[4];
        column_words(words, x);
        for (int t = 0; t < 4; ++t) {
            rows[8 * r + 2 * t] = low_halves<H>(x[t]);
            rows[8 * r + 2 * t + 1] = high_halves<H>(x[t]);
        }
    }
    const u32* c_cells[4] = {w.cells<u32>(c[0]), w.cells<u32>(c[1]), w.cells<u32>(c[2]), w.cells<u32>(c[3])};
    Floats acc[16];
    for (int g = 0; g < 8; ++g) {
        acc[g] = load_row(c_cells[0], c_cells[1], g);
        acc[g + 8] = load_row(c_cells[2], c_cells[3], g);
    }
    for (int g = 0; g < 8; g += 4) {  // eight rows at a time hide the latency of the chains
        Floats sum[8];
        for (int i = 0; i < 4; ++i) sum[i] = acc[g + i], sum[i + 4] = acc[g + 8 + i];
        for (int r = 0; r < k_registers; ++r)
            for (int t = 0; t < 4; ++t) {
                const float *e0 = even[2 * r] + 4 * g + t, *e1 = even[2 * r + 1] + 4 * g + t;
                const float *o0 = odd[2 * r] + 4 * g + t, *o1 = odd[2 * r + 1] + 4 * g + t;
                Floats y = rows[8 * r + 2 * t], z = rows[8 * r + 2 * t + 1];
                for (int i = 0; i < 4; ++i) sum[i] = fused(e0[4 * i], y, sum[i]);
                for (int i = 0; i < 4; ++i) sum[i + 4] = fused(e1[4 * i], y, sum[i + 4]);
                for (int i = 0; i < 4; ++i) sum[i] = fused(o0[4 * i], z, sum[i]);
                for (int i = 0; i < 4; ++i) sum[i + 4] = fused(o1[4 * i], z, sum[i + 4]);
            }
        for (int i = 0; i < 4; ++i) acc[g + i] = sum[i], acc[g + 8 + i] = sum[i + 4];
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
