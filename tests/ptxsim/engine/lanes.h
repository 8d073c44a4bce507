// Loops over lanes. One op is one tight loop that the compiler vectorises; a partial warp computes all lanes and
// blends.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <type_traits>

#include "warp.h"

namespace ptxsim {

// Registers are stored in 32-bit or 64-bit cells; narrower values are zero-extended.
template <class T>
using Cell = std::conditional_t<sizeof(T) == 8, u64, u32>;
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, u64,
                                std::conditional_t<sizeof(T) == 4, u32, std::conditional_t<sizeof(T) == 2, u16, u8>>>;

template <class T>
inline T from_cell(Cell<T> cell) {
    return bit_cast<T>(static_cast<Bits<T>>(cell));
}
template <class T>
inline Cell<T> to_cell(T value) {
    return static_cast<Cell<T>>(bit_cast<Bits<T>>(value));
}

template <class C>
inline void blend(C* dst, const C* values, u32 mask) {
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) dst[i] = (mask >> i) & 1 ? values[i] : dst[i];
}

template <class D, class A, class F>
inline void map1(Warp& w, Ref dst, Ref ra, F f) {
    auto* d = w.cells<Cell<D>>(dst);
    const auto* a = w.cells<Cell<A>>(ra);
    u32 known = w.defined(ra);
    if (w.active == kFull) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) d[i] = to_cell<D>(f(from_cell<A>(a[i])));
    } else {
        Cell<D> t[kLanes];
        for (int i = 0; i < kLanes; ++i) t[i] = to_cell<D>(f(from_cell<A>(a[i])));
        blend(d, t, w.active);
    }
    w.define(dst, known);
}

template <class D, class A, class B, class F>
inline void map2(Warp& w, Ref dst, Ref ra, Ref rb, F f) {
    auto* d = w.cells<Cell<D>>(dst);
    const auto* a = w.cells<Cell<A>>(ra);
    const auto* b = w.cells<Cell<B>>(rb);
    u32 known = w.defined(ra) & w.defined(rb);
    if (w.active == kFull) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) d[i] = to_cell<D>(f(from_cell<A>(a[i]), from_cell<B>(b[i])));
    } else {
        Cell<D> t[kLanes];
        for (int i = 0; i < kLanes; ++i) t[i] = to_cell<D>(f(from_cell<A>(a[i]), from_cell<B>(b[i])));
        blend(d, t, w.active);
    }
    w.define(dst, known);
}

template <class D, class A, class B, class C, class F>
inline void map3(Warp& w, Ref dst, Ref ra, Ref rb, Ref rc, F f) {
    auto* d = w.cells<Cell<D>>(dst);
    const auto* a = w.cells<Cell<A>>(ra);
    const auto* b = w.cells<Cell<B>>(rb);
    const auto* c = w.cells<Cell<C>>(rc);
    u32 known = w.defined(ra) & w.defined(rb) & w.defined(rc);
    if (w.active == kFull) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i)
            d[i] = to_cell<D>(f(from_cell<A>(a[i]), from_cell<B>(b[i]), from_cell<C>(c[i])));
    } else {
        Cell<D> t[kLanes];
        for (int i = 0; i < kLanes; ++i)
            t[i] = to_cell<D>(f(from_cell<A>(a[i]), from_cell<B>(b[i]), from_cell<C>(c[i])));
        blend(d, t, w.active);
    }
    w.define(dst, known);
}

// One bit a lane from 0 / 1 values.
inline u32 pack_mask(const u32* flags) {
    u32 mask = 0;
#if defined(__AVX2__)
    for (int i = 0; i < kLanes; i += 8) {
        __m256i v = _mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(flags + i)), 31);
        mask |= static_cast<u32>(_mm256_movemask_ps(_mm256_castsi256_ps(v))) << i;
    }
#else
    for (int i = 0; i < kLanes; ++i) mask |= (flags[i] & 1u) << i;
#endif
    return mask;
}

template <class A, class B, class F>
inline u32 test2(Warp& w, Ref ra, Ref rb, F f) {
    const auto* a = w.cells<Cell<A>>(ra);
    const auto* b = w.cells<Cell<B>>(rb);
    alignas(32) u32 flags[kLanes];
    for (int i = 0; i < kLanes; ++i) flags[i] = f(from_cell<A>(a[i]), from_cell<B>(b[i])) ? 1u : 0u;
    return pack_mask(flags);
}

// 0 / ~0 per lane from a mask.
inline void unpack_mask(u32 mask, u32* flags) {
    for (int i = 0; i < kLanes; ++i) flags[i] = 0u - ((mask >> i) & 1u);
}

// Calls f(lane) for the set lanes, lowest first.
template <class F>
inline void for_lanes(u32 mask, F f) {
    for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

}  // namespace ptxsim
