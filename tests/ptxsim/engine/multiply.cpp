// Integer products (PTX ISA 9.7.1): mul, mad, mul24, mad24, dp4a, dp2a, and madc of 9.7.2.
#include "control.h"
#include "integer.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

template <class T>
using Wide = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, s32, u32>,
                                std::conditional_t<std::is_signed_v<T>, s64, u64>>;

template <class T>
T low(T a, T b) {
    if constexpr (sizeof(T) == 2) return static_cast<T>(static_cast<u32>(static_cast<u16>(a)) * static_cast<u16>(b));
    else return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) * static_cast<std::make_unsigned_t<T>>(b));
}

// "the upper half of the product"
template <class T>
T high(T a, T b) {
    if constexpr (sizeof(T) == 8) {
        using Product = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
        return static_cast<T>(static_cast<Product>(a) * b >> 64);
    } else {
        return static_cast<T>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b) >> (8 * sizeof(T)));
    }
}

template <class T>
T plus(T a, T b) {
    return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) + static_cast<std::make_unsigned_t<T>>(b));
}

// 9.7.1.3 mul
template <class T>
void op_mul_lo(Warp& w, const Op& op) {
    map2<T, T, T>(w, op.dst, op.a, op.b, low<T>);
}
template <class T>
void op_mul_hi(Warp& w, const Op& op) {
    map2<T, T, T>(w, op.dst, op.a, op.b, high<T>);
}
template <class T>
void op_mul_wide(Warp& w, const Op& op) {
    using W = Wide<T>;
    map2<W, T, T>(w, op.dst, op.a, op.b,
                  [](T a, T b) { return static_cast<W>(static_cast<W>(a) * static_cast<W>(b)); });
}

// 9.7.1.4 mad
template <class T>
void op_mad_lo(Warp& w, const Op& op) {
    map3<T, T, T, T>(w, op.dst, op.a, op.b, op.c, [](T a, T b, T c) { return plus(low(a, b), c); });
}
template <class T>
void op_mad_hi(Warp& w, const Op& op) {
    map3<T, T, T, T>(w, op.dst, op.a, op.b, op.c, [](T a, T b, T c) { return plus(high(a, b), c); });
}
template <class T>
void op_mad_wide(Warp& w, const Op& op) {
    using W = Wide<T>;
    map3<W, T, T, W>(w, op.dst, op.a, op.b, op.c,
                     [](T a, T b, W c) { return plus<W>(static_cast<W>(static_cast<W>(a) * static_cast<W>(b)), c); });
}
void op_mad_hi_sat(Warp& w, const Op& op) {
    map3<s32, s32, s32, s32>(w, op.dst, op.a, op.b, op.c, [](s32 a, s32 b, s32 c) {
        s64 sum = static_cast<s64>(high(a, b)) + c;
        return static_cast<s32>(sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum);
    });
}

std::string take_part(Form& f) {
    std::string part = f.take_any({"lo", "hi", "wide"});
    if (part.empty()) f.unsupported("it needs .lo, .hi or .wide");
    return part;
}

Handler wide_handler(Form& f, const std::string& type, bool mad) {
    if (type == "s16") return mad ? op_mad_wide<s16> : op_mul_wide<s16>;
    if (type == "u16") return mad ? op_mad_wide<u16> : op_mul_wide<u16>;
    if (type == "s32") return mad ? op_mad_wide<s32> : op_mul_wide<s32>;
    if (type == "u32") return mad ? op_mad_wide<u32> : op_mul_wide<u32>;
    f.unsupported(".wide of type ." + type);
}

void decode_wide(Form& f, const std::string& type, bool mad) {
    Decoder& d = f.decoder;
    int bytes = type_size(type);
    Handler fn = wide_handler(f, type, mad);
    Ref a = d.source(f.at(1), bytes), b = d.source(f.at(2), bytes), c = mad ? d.source(f.at(3), 2 * bytes) : 0;
    Op& op = d.emit(fn, OpClass::Integer);
    op.a = a;
    op.b = b;
    op.c = c;
    op.dst = d.dest(f.at(0), 2 * bytes);
}

bool is_real(const Form& f) {
    for (const char* type : {"f32", "f64", "f16", "f16x2", "bf16", "bf16x2"})
        if (f.inst.has(type)) return true;
    return false;
}

void decode_mul(Form& f) {
    if (is_real(f)) return decode_float_mul(f);
    std::string part = take_part(f), type = f.take_type();
    if (part == "wide") return decode_wide(f, type, false);
    Handler fn = part == "lo" ? by_integer_type(f, type, [](auto t) -> Handler { return op_mul_lo<decltype(t)>; })
                              : by_integer_type(f, type, [](auto t) -> Handler { return op_mul_hi<decltype(t)>; });
    emit_binary(f, fn, type_size(type));
}

// 9.7.2.5-6 mad.cc and madc: the carry of the addition.
template <class T, bool kHigh, bool kIn, bool kOut>
void op_mad_carry(Warp& w, const Op& op) {
    const T *a = w.cells<T>(op.a), *b = w.cells<T>(op.b), *c = w.cells<T>(op.c);
    T* d = w.cells<T>(op.dst);
    u32 known = w.defined(op.a) & w.defined(op.b) & w.defined(op.c) & (kIn ? w.carry_defined : kFull);
    for_lanes(w.active, [&](int i) {
        T product = kHigh ? high(a[i], b[i]) : low(a[i], b[i]);
        T partial = product + c[i], sum = partial + (kIn && lane_in(w.carry, i) ? 1 : 0);
        if (kOut) w.carry = (w.carry & ~(1u << i)) | static_cast<u32>(partial < product || sum < partial) << i;
        d[i] = sum;
    });
    if (kOut) w.carry_defined = (w.carry_defined & ~w.active) | (known & w.active);
    w.define(op.dst, known);
}

// The high half of a signed product differs from the unsigned one, its carry does not exist in CUDA's own code.
template <bool kIn, bool kOut>
void decode_mad_carry(Form& f, bool hi, const std::string& type) {
    if (hi && type[0] == 's') f.unsupported("the carry of a signed high product");
    bool wide = type_size(type) == 8;
    Handler narrow_fn = hi ? op_mad_carry<u32, true, kIn, kOut> : op_mad_carry<u32, false, kIn, kOut>;
    Handler wide_fn = hi ? op_mad_carry<u64, true, kIn, kOut> : op_mad_carry<u64, false, kIn, kOut>;
    emit_ternary(f, wide ? wide_fn : narrow_fn, type_size(type));
}

void decode_mad(Form& f) {
    if (is_real(f)) return decode_float_fma(f);
    std::string part = take_part(f);
    bool saturate = f.take("sat"), carry = f.take("cc");
    std::string type = f.take_type();
    if (part == "wide") return decode_wide(f, type, true);
    if (carry) return decode_mad_carry<false, true>(f, part == "hi", type);
    if (saturate) {
        if (part != "hi" || type != "s32") f.unsupported(".sat needs .hi.s32");
        return emit_ternary(f, op_mad_hi_sat, 4);
    }
    Handler fn = part == "lo" ? by_integer_type(f, type, [](auto t) -> Handler { return op_mad_lo<decltype(t)>; })
                              : by_integer_type(f, type, [](auto t) -> Handler { return op_mad_hi<decltype(t)>; });
    emit_ternary(f, fn, type_size(type));
}

void decode_madc(Form& f) {
    bool hi = take_part(f) == "hi", out = f.take("cc");
    std::string type = f.take_type();
    out ? decode_mad_carry<true, true>(f, hi, type) : decode_mad_carry<true, false>(f, hi, type);
}

// 9.7.1.5-6 mul24, mad24: "the low 24 bits of the sources"; .hi gives bits 47..16 of the 48-bit product.
template <class T>
T product24(T a, T b, bool hi) {
    auto extend = [](T x) {
        return std::is_signed_v<T> ? static_cast<s64>(static_cast<s32>(static_cast<u32>(x) << 8) >> 8)
                                   : static_cast<s64>(static_cast<u32>(x) & 0xffffff);
    };
    return static_cast<T>(extend(a) * extend(b) >> (hi ? 16 : 0));
}
template <class T, bool kHigh>
void op_mul24(Warp& w, const Op& op) {
    map2<T, T, T>(w, op.dst, op.a, op.b, [](T a, T b) { return product24(a, b, kHigh); });
}
template <class T, bool kHigh>
void op_mad24(Warp& w, const Op& op) {
    map3<T, T, T, T>(w, op.dst, op.a, op.b, op.c, [](T a, T b, T c) { return plus(product24(a, b, kHigh), c); });
}

void decode_mul24(Form& f) {
    bool hi = take_part(f) == "hi", sign = f.take_type() == "s32";
    emit_binary(
        f, sign ? (hi ? op_mul24<s32, true> : op_mul24<s32, false>) : (hi ? op_mul24<u32, true> : op_mul24<u32, false>),
        4);
}
void decode_mad24(Form& f) {
    bool hi = take_part(f) == "hi", sign = f.take_type() == "s32";
    emit_ternary(
        f, sign ? (hi ? op_mad24<s32, true> : op_mad24<s32, false>) : (hi ? op_mad24<u32, true> : op_mad24<u32, false>),
        4);
}

// 9.7.1.23-24 dp4a, dp2a: byte (and half) dot products accumulated in 32 bits.
template <class A, class B>
void op_dp4a(Warp& w, const Op& op) {
    map3<u32, u32, u32, u32>(w, op.dst, op.a, op.b, op.c, [](u32 a, u32 b, u32 c) {
        for (int k = 0; k < 32; k += 8)
            c += static_cast<u32>(static_cast<s32>(static_cast<A>(a >> k)) * static_cast<s32>(static_cast<B>(b >> k)));
        return c;
    });
}
template <class A, class B, int kShift>
void op_dp2a(Warp& w, const Op& op) {
    map3<u32, u32, u32, u32>(w, op.dst, op.a, op.b, op.c, [](u32 a, u32 b, u32 c) {
        for (int k = 0; k < 2; ++k)
            c += static_cast<u32>(static_cast<s32>(static_cast<A>(a >> (16 * k))) *
                                  static_cast<s32>(static_cast<B>(b >> (kShift + 8 * k))));
        return c;
    });
}

void decode_dp4a(Form& f) {
    bool a = f.take_first_type() == "s32", b = f.take_first_type() == "s32";
    emit_ternary(f, a ? (b ? op_dp4a<s8, s8> : op_dp4a<s8, u8>) : (b ? op_dp4a<u8, s8> : op_dp4a<u8, u8>), 4);
}
void decode_dp2a(Form& f) {
    bool hi = f.take_any({"lo", "hi"}) == "hi";
    bool a = f.take_first_type() == "s32", b = f.take_first_type() == "s32";
    Handler lo_fn =
        a ? (b ? op_dp2a<s16, s8, 0> : op_dp2a<s16, u8, 0>) : (b ? op_dp2a<u16, s8, 0> : op_dp2a<u16, u8, 0>);
    Handler hi_fn =
        a ? (b ? op_dp2a<s16, s8, 16> : op_dp2a<s16, u8, 16>) : (b ? op_dp2a<u16, s8, 16> : op_dp2a<u16, u8, 16>);
    emit_ternary(f, hi ? hi_fn : lo_fn, 4);
}

}  // namespace

void add_multiply_families(FamilyTable& t) {
    t["mul"] = decode_mul;
    t["mad"] = decode_mad;
    t["madc"] = decode_madc;
    t["mul24"] = decode_mul24;
    t["mad24"] = decode_mad24;
    t["dp4a"] = decode_dp4a;
    t["dp2a"] = decode_dp2a;
}

}  // namespace ptxsim
