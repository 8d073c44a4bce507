// Bit counting and fields (PTX ISA 9.7.1.15-22): popc, clz, bfind, fns, brev, bfe, bfi, szext, bmsk.
#include "control.h"
#include "integer.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

template <class T> u32 count_leading(T x) {
    return sizeof(T) == 8 ? (x ? static_cast<u32>(__builtin_clzll(x)) : 64)
                          : (x ? static_cast<u32>(__builtin_clz(static_cast<u32>(x))) : 32);
}

template <class T>
void op_popc(Warp& w, const Op& op) {
    map1<u32, T>(w, op.dst, op.a, [](T x) { return static_cast<u32>(__builtin_popcountll(x)); });
}
template <class T>
void op_clz(Warp& w, const Op& op) {
    map1<u32, T>(w, op.dst, op.a, [](T x) { return count_leading(x); });
}

// 9.7.1.17 bfind: "the bit position of the most significant non-sign bit"; 0xffffffff if there is none.
template <class T, bool kShift>
void op_bfind(Warp& w, const Op& op) {
    map1<u32, T>(w, op.dst, op.a, [](T x) {
        using U = std::make_unsigned_t<T>;
        U bits = std::is_signed_v<T> && x < 0 ? static_cast<U>(~static_cast<U>(x)) : static_cast<U>(x);
        if (bits == 0) return 0xffffffffu;
        u32 position = 8 * sizeof(T) - 1 - count_leading(bits);
        return kShift ? static_cast<u32>(8 * sizeof(T) - 1) - position : position;
    });
}

u32 reverse(u32 x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
void op_brev32(Warp& w, const Op& op) { map1<u32, u32>(w, op.dst, op.a, reverse); }
void op_brev64(Warp& w, const Op& op) {
    map1<u64, u64>(w, op.dst, op.a, [](u64 x) {
        return static_cast<u64>(reverse(static_cast<u32>(x))) << 32 | reverse(static_cast<u32>(x >> 32));
    });
}

// 9.7.1.19 bfe: position and length are the low 8 bits of b and c; beyond the top the sign fills.
template <class T>
void op_bfe(Warp& w, const Op& op) {
    map3<T, T, u32, u32>(w, op.dst, op.a, op.b, op.c, [](T a, u32 b, u32 c) -> T {
        using U = std::make_unsigned_t<T>;
        constexpr u32 kTop = 8 * sizeof(T) - 1;
        u32 position = b & 255, length = c & 255;
        if (length == 0) return 0;
        u32 sign_at = position + length - 1 < kTop ? position + length - 1 : kTop;
        bool sign = std::is_signed_v<T> && ((static_cast<U>(a) >> sign_at) & 1);
        U field = position > kTop ? 0 : static_cast<U>(static_cast<U>(a) >> position);
        u32 have = position > kTop ? 0 : kTop + 1 - position;
        u32 keep = length < have ? length : have;
        U mask = keep > kTop ? ~U(0) : static_cast<U>((U(1) << keep) - 1);
        return static_cast<T>((field & mask) | (sign ? static_cast<U>(~mask) : 0));
    });
}

// 9.7.1.20 bfi: "Align and insert a bit field from a into b".
template <class T>
void op_bfi(Warp& w, const Op& op) {
    const T *a = w.cells<T>(op.a), *b = w.cells<T>(op.b);
    const u32 *at = w.cells<u32>(op.c), *length = w.cells<u32>(op.d);
    T t[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        u32 position = at[i] & 255, n = length[i] & 255;
        constexpr u32 kWidth = 8 * sizeof(T);
        T mask = n >= kWidth ? ~T(0) : static_cast<T>((T(1) << n) - 1);
        mask = position >= kWidth ? 0 : static_cast<T>(mask << position);
        T field = position >= kWidth ? 0 : static_cast<T>(a[i] << position);
        t[i] = (b[i] & ~mask) | (field & mask);
    }
    u32 known = w.defined(op.a) & w.defined(op.b) & w.defined(op.c) & w.defined(op.d);
    blend(w.cells<T>(op.dst), t, w.active);
    w.define(op.dst, known);
}

// 9.7.1.21 szext: "Sign-extend or zero-extend an N-bit value"; N = 0 gives 0.
template <class T, bool kClamp>
void op_szext(Warp& w, const Op& op) {
    map2<T, T, u32>(w, op.dst, op.a, op.b, [](T a, u32 b) -> T {
        u32 n = kClamp ? (b > 32 ? 32 : b) : b & 31;
        if (n == 0) return 0;
        u32 up = 32 - n;
        return static_cast<T>(static_cast<T>(static_cast<u32>(a) << up) >> up);
    });
}

// 9.7.1.22 bmsk: a run of b ones from bit a.
template <bool kClamp>
void op_bmsk(Warp& w, const Op& op) {
    map2<u32, u32, u32>(w, op.dst, op.a, op.b, [](u32 a, u32 b) {
        u32 position = kClamp ? (a > 32 ? 32 : a) : a & 31, n = kClamp ? (b > 32 ? 32 : b) : b & 31;
        u64 mask = ((1ull << n) - 1) << position;
        return static_cast<u32>(mask);
    });
}

// 9.7.1.18 fns: "the n-th set bit at or beyond base", downwards if the offset is negative.
u32 find_nth(u32 mask, u32 base, s32 offset) {
    if (offset == 0) return lane_in(mask, static_cast<int>(base & 31)) ? base : 0xffffffffu;
    int step = offset > 0 ? 1 : -1, left = offset * step;
    for (int at = static_cast<int>(base); at >= 0 && at < 32; at += step)
        if (lane_in(mask, at) && --left == 0) return static_cast<u32>(at);
    return 0xffffffffu;
}
void op_fns(Warp& w, const Op& op) { map3<u32, u32, u32, s32>(w, op.dst, op.a, op.b, op.c, find_nth); }

void emit_count(Form& f, Handler narrow, Handler wide) {
    int bytes = type_size(f.take_type());
    Ref a = f.decoder.source(f.at(1), bytes);
    Op& op = f.decoder.emit(bytes == 8 ? wide : narrow, OpClass::Integer);
    op.a = a;
    op.dst = f.decoder.dest(f.at(0), 4);
}

void decode_popc(Form& f) { emit_count(f, op_popc<u32>, op_popc<u64>); }
void decode_clz(Form& f) { emit_count(f, op_clz<u32>, op_clz<u64>); }

void decode_bfind(Form& f) {
    bool shift = f.take("shiftamt");
    bool sign = f.inst.has("s32") || f.inst.has("s64");
    if (shift)
        return emit_count(f, sign ? op_bfind<s32, true> : op_bfind<u32, true>,
                          sign ? op_bfind<s64, true> : op_bfind<u64, true>);
    emit_count(f, sign ? op_bfind<s32, false> : op_bfind<u32, false>,
               sign ? op_bfind<s64, false> : op_bfind<u64, false>);
}

void decode_brev(Form& f) {
    int bytes = type_size(f.take_type());
    Ref a = f.decoder.source(f.at(1), bytes);
    Op& op = f.decoder.emit(bytes == 8 ? op_brev64 : op_brev32, OpClass::Integer);
    op.a = a;
    op.dst = f.decoder.dest(f.at(0), bytes);
}

void emit_field(Form& f, Handler fn, int bytes) {
    Decoder& d = f.decoder;
    Ref a = d.source(f.at(1), bytes), b = d.source(f.at(2), 4), c = d.source(f.at(3), 4);
    Op& op = d.emit(fn, OpClass::Integer);
    op.a = a;
    op.b = b;
    op.c = c;
    op.dst = d.dest(f.at(0), bytes);
}

void decode_bfe(Form& f) {
    std::string type = f.take_type();
    emit_field(f,
               type == "s32"   ? op_bfe<s32>
               : type == "s64" ? op_bfe<s64>
               : type == "u64" ? op_bfe<u64>
                               : op_bfe<u32>,
               type_size(type));
}

void decode_bfi(Form& f) {
    int bytes = type_size(f.take_type());
    Decoder& d = f.decoder;
    Ref a = d.source(f.at(1), bytes), b = d.source(f.at(2), bytes), c = d.source(f.at(3), 4), n = d.source(f.at(4), 4);
    Op& op = d.emit(bytes == 8 ? op_bfi<u64> : op_bfi<u32>, OpClass::Integer);
    op.a = a;
    op.b = b;
    op.c = c;
    op.d = n;
    op.dst = d.dest(f.at(0), bytes);
}

void decode_szext(Form& f) {
    bool clamp = f.take_any({"clamp", "wrap"}) == "clamp", sign = f.take_type() == "s32";
    emit_binary(f,
                sign ? (clamp ? op_szext<s32, true> : op_szext<s32, false>)
                     : (clamp ? op_szext<u32, true> : op_szext<u32, false>),
                4);
}

void decode_bmsk(Form& f) {
    bool clamp = f.take_any({"clamp", "wrap"}) == "clamp";
    f.take_type();
    emit_binary(f, clamp ? op_bmsk<true> : op_bmsk<false>, 4);
}

void decode_fns(Form& f) {
    f.take_type();
    emit_ternary(f, op_fns, 4);
}

}  // namespace

void add_bit_families(FamilyTable& t) {
    t["popc"] = decode_popc;
    t["clz"] = decode_clz;
    t["bfind"] = decode_bfind;
    t["brev"] = decode_brev;
    t["bfe"] = decode_bfe;
    t["bfi"] = decode_bfi;
    t["szext"] = decode_szext;
    t["bmsk"] = decode_bmsk;
    t["fns"] = decode_fns;
}

}  // namespace ptxsim
