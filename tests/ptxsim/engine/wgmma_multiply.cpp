// The product of wgmma: a warp's 16 rows of D, eight columns at a time. As for mma.sync, products are exact in single
// precision and sums are taken from the lowest k up (docs/simulator.md).
#include <type_traits>

#include "cta.h"
#include "lanes.h"
#include "mma_layout.h"
#include "wgmma.h"

namespace ptxsim {

namespace {

constexpr u32 kMaxK = 32, kRows = 16;

// Columns of a row as D's registers hold them: lanes 4g..4g+3 of the first register of a pair hold the even columns.
constexpr u32 kColumnOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

typedef float Floats __attribute__((vector_size(32)));
typedef s32 Ints __attribute__((vector_size(32)));
typedef u32 Words __attribute__((vector_size(32)));
typedef u16 Halves __attribute__((vector_size(16)));

template <class T>
using Eight = std::conditional_t<std::is_same_v<T, float>, Floats, Ints>;

template <class V>
V load_vector(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// A piece of 16 bytes, element by element.
template <class T>
void load_piece(const u8* from, Input type, T* out) {
    u32 words[4];
    std::memcpy(words, from, 16);
    int per = per_register(type);
    if constexpr (std::is_same_v<T, float>) {
        if (type == kBf16) {
            Floats x = reinterpret_cast<Floats>(__builtin_convertvector(load_vector<Halves>(from), Words) << 16);
            std::memcpy(out, &x, sizeof x);
            return;
        }
#if defined(__F16C__) && defined(__AVX2__)
        if (type == kF16) return _mm256_storeu_ps(out, _mm256_cvtph_ps(load_vector<__m128i>(from)));
#endif
    }
    for (int i = 0; i < 4 * per; ++i) out[i] = element<T>(words[i / per], i % per, type);
}

template <class T>
struct Operands {
    alignas(32) T a[kRows][kMaxK];
    alignas(32) T b[kMaxK][8];
};

u32 per_piece(Input type) { return 16u / static_cast<u32>(element_bytes(type)); }

template <class T>
void gather_a(Warp& w, const PendingWgmma& p, const WgmmaForm& f, T a[kRows][kMaxK]) {
    const u8* shared = w.cta->shared.data();
    u32 first = static_cast<u32>(w.id) % 4 * kRows, piece = per_piece(f.a_type);
    if (f.a_in_registers) {
        int per = per_register(f.a_type);
        for (int r = 0; r < 4; ++r) {
            const u32* cells = w.registers.data() + p.cells + (p.op->list[f.d_registers() + r] & kOffsetMask);
            for (int lane = 0; lane < kLanes; ++lane)
                for (int e = 0; e < per; ++e) {
                    Position at = a_position(lane, r * per + e, per, kRows);
                    a[at.row][at.col] = element<T>(cells[lane], e, f.a_type);
                }
        }
    } else if (f.a_transposed) {
        T row[16];
        for (u32 k = 0; k < f.k; ++k)
            for (u32 c = 0; c < kRows / 8; ++c) {
                load_piece(shared + p.a.mn_major(k, first / 8 + c), f.a_type, row);
                for (u32 i = 0; i < 8; ++i) a[8 * c + i][k] = row[i];
            }
    } else {
        for (u32 r = 0; r < kRows; ++r)
            for (u32 half = 0; half < 2; ++half)
                load_piece(shared + p.a.k_major(first + r, half), f.a_type, a[r] + half * piece);
    }
    if (!f.negative) return;
    for (u32 r = 0; r < kRows; ++r)
        for (u32 k = 0; k < f.k; ++k) a[r][k] = -a[r][k];
}

// 8 x 8, in place.
void transpose(Floats r[8]) {
    Floats t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    Floats u[8];
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            u[i + j] = __builtin_shufflevector(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            u[i + j + 2] = __builtin_shufflevector(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int j = 0; j < 4; ++j) {
        r[j] = __builtin_shufflevector(u[j], u[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[j + 4] = __builtin_shufflevector(u[j], u[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// Eight columns of B, from `column` on, in the order of D's registers.
template <class T>
void gather_b(Warp& w, const PendingWgmma& p, const WgmmaForm& f, u32 column, T b[kMaxK][8]) {
    const u8* shared = w.cta->shared.data();
    alignas(32) T piece[16];
    if (f.b_transposed) {
        for (u32 k = 0; k < f.k; ++k) {
            load_piece(shared + p.b.mn_major(k, column / 8), f.b_type, piece);
            for (u32 j = 0; j < 8; ++j) b[k][j] = piece[kColumnOrder[j]];
        }
        return;
    }
    u32 per = per_piece(f.b_type);
    for (u32 half = 0; half < 2; ++half) {
        if constexpr (std::is_same_v<T, float>) {
            if (per == 8) {
                Floats rows[8];
                for (u32 j = 0; j < 8; ++j)
                    load_piece(shared + p.b.k_major(column + kColumnOrder[j], half), f.b_type,
                               reinterpret_cast<float*>(&rows[j]));
                transpose(rows);
                std::memcpy(b[half * 8], rows, sizeof rows);
                continue;
            }
        }
        for (u32 j = 0; j < 8; ++j) {
            load_piece(shared + p.b.k_major(column + kColumnOrder[j], half), f.b_type, piece);
            for (u32 i = 0; i < per; ++i) b[half * per + i][j] = piece[i];
        }
    }
}

template <class T>
Eight<T> fused(T x, Eight<T> y, Eight<T> z) {
    if constexpr (std::is_same_v<T, float>) {
        for (int j = 0; j < 8; ++j) z[j] = __builtin_fmaf(x, y[j], z[j]);
        return z;
    } else {
        return reinterpret_cast<Ints>(reinterpret_cast<Words>(z) + reinterpret_cast<Words>(y * x));
    }
}

// Eight rows at a time hide the latency of the chains.
template <class T>
void multiply(const Operands<T>& m, u32 depth, Eight<T> sum[kRows]) {
    for (u32 first = 0; first < kRows; first += 8) {
        Eight<T> s[8];
        for (u32 i = 0; i < 8; ++i) s[i] = sum[first + i];
        for (u32 k = 0; k < depth; ++k) {
            Eight<T> y = load_vector<Eight<T>>(m.b[k]);
            for (u32 i = 0; i < 8; ++i) s[i] = fused<T>(m.a[first + i][k], y, s[i]);
        }
        for (u32 i = 0; i < 8; ++i) sum[first + i] = s[i];
    }
}

// D row: r = 8 * pair + g. F32 and S32: registers 2 * pair, 2 * pair + 1 of a block of four, lanes 4g..4g+3.
template <class T>
void load_rows(u32* const cells[4], Eight<T> sum[kRows]) {
    for (u32 r = 0; r < kRows; ++r) {
        std::memcpy(&sum[r], cells[r / 8 * 2] + r % 8 * 4, 16);
        std::memcpy(reinterpret_cast<char*>(&sum[r]) + 16, cells[r / 8 * 2 + 1] + r % 8 * 4, 16);
    }
}
void store_rows(u32* const cells[4], Floats sum[kRows]) {
    for (u32 r = 0; r < kRows; ++r) {
        Words bits = sum[r] == sum[r] ? reinterpret_cast<Words>(sum[r]) : Words{} + 0x7fffffffu;
        std::memcpy(cells[r / 8 * 2] + r % 8 * 4, &bits, 16);
        std::memcpy(cells[r / 8 * 2 + 1] + r % 8 * 4, reinterpret_cast<char*>(&bits) + 16, 16);
    }
}
// F16: register `pair` of a block of two holds both columns.
void load_half_rows(u32* const cells[2], Floats sum[kRows]) {
    for (u32 r = 0; r < kRows; ++r)
        for (u32 j = 0; j < 4; ++j) {
            u32 word = cells[r / 8][r % 8 * 4 + j];
            sum[r][j] = to_float(Half{static_cast<u16>(word)});
            sum[r][j + 4] = to_float(Half{static_cast<u16>(word >> 16)});
        }
}
void store_half_rows(u32* const cells[2], const Floats sum[kRows]) {
    for (u32 r = 0; r < kRows; ++r)
        for (u32 j = 0; j < 4; ++j)
            cells[r / 8][r % 8 * 4 + j] =
                static_cast<u32>(half_from_float(sum[r][j + 4])) << 16 | half_from_float(sum[r][j]);
}

void multiply_float(Warp& w, PendingWgmma& p, const WgmmaForm& f) {
    Operands<float> m;
    gather_a(w, p, f, m.a);
    bool half = f.accumulator == Accumulator::F16;
    u32 per_block = half ? 2 : 4;
    for (u32 block = 0; block < f.n / 8; ++block) {
        u32* cells[4];
        for (u32 i = 0; i < per_block; ++i)
            cells[i] = w.registers.data() + p.cells + (p.op->list[block * per_block + i] & kOffsetMask);
        Floats sum[kRows] = {};
        if (p.accumulates) half ? load_half_rows(cells, sum) : load_rows<float>(cells, sum);
        gather_b(w, p, f, 8 * block, m.b);
        multiply(m, f.k, sum);
        half ? store_half_rows(cells, sum) : store_rows(cells, sum);
    }
}

// .satfinite clamps the 32-bit sum; the exact one is kept in 64 bits.
void multiply_integer(Warp& w, PendingWgmma& p, const WgmmaForm& f) {
    Operands<s32> m;
    gather_a(w, p, f, m.a);
    for (u32 block = 0; block < f.n / 8; ++block) {
        u32* cells[4];
        for (u32 i = 0; i < 4; ++i) cells[i] = w.registers.data() + p.cells + (p.op->list[4 * block + i] & kOffsetMask);
        Ints sum[kRows] = {}, product[kRows] = {};
        if (p.accumulates) load_rows<s32>(cells, sum);
        gather_b(w, p, f, 8 * block, m.b);
        multiply(m, f.k, product);  // 32 products of 8 bits fit
        for (u32 r = 0; r < kRows; ++r)
            for (u32 j = 0; j < 8; ++j) {
                s64 exact = static_cast<s64>(sum[r][j]) + product[r][j];
                if (f.saturate) exact = std::clamp<s64>(exact, INT32_MIN, INT32_MAX);
                cells[r / 8 * 2 + j / 4][r % 8 * 4 + j % 4] = static_cast<u32>(exact);
            }
    }
}

// An undefined element of A makes its row undefined, one of B its column.
void define_results(Warp& w, PendingWgmma& p, const WgmmaForm& f) {
    u32* known = w.register_defined.data();
    auto slot = [&](u32 i) { return (p.cells + (p.op->list[i] & kOffsetMask)) / kLanes; };
    u32 bad_rows = p.bad_rows, bad_columns = 0;
    for (u32 i = 0; i < f.a_registers(); ++i)
        for_lanes(~known[slot(f.d_registers() + i)], [&](int lane) { bad_rows |= 1u << (lane / 4 + 8 * (i % 2)); });
    for (u32 word : p.bad_columns) bad_columns |= word;
    u32 per = f.accumulator == Accumulator::F16 ? 2 : 1;
    for (u32 i = 0; i < f.d_registers(); ++i) {
        u32 good = p.accumulates ? known[slot(i)] : kFull;
        for (int lane = 0; (bad_rows | bad_columns) && lane < kLanes; ++lane)
            for (u32 e = i * per; e < i * per + per; ++e) {
                u32 row = static_cast<u32>(lane) / 4 + 8 * (e / 2 % 2);
                u32 column = 8 * (e / 4) + static_cast<u32>(lane) % 4 * 2 + e % 2;
                if ((bad_rows >> row & 1) || (p.bad_columns[column / 32] >> column % 32 & 1)) good &= ~(1u << lane);
            }
        known[slot(i)] = good;
    }
}

}  // namespace

void multiply_wgmma(Warp& w, PendingWgmma& p) {
    const WgmmaForm& f = *static_cast<const WgmmaForm*>(p.op->form);
    f.accumulator == Accumulator::S32 ? multiply_integer(w, p, f) : multiply_float(w, p, f);
    define_results(w, p, f);
    p.computed = true;
}

}  // namespace ptxsim
