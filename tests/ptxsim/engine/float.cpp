// Single and double precision arithmetic (PTX ISA 9.7.3): add, sub, mul, fma, mad, div, abs, neg, min, max, rcp, sqrt.
#include "control.h"
#include "fp.h"
#include "integer.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

struct FAdd {
    template <class T> T operator()(T a, T b) const { return a + b; }
};
struct FSub {
    template <class T> T operator()(T a, T b) const { return a - b; }
};
struct FMul {
    template <class T> T operator()(T a, T b) const { return a * b; }
};
struct FDiv {
    template <class T> T operator()(T a, T b) const { return a / b; }
};
struct FFma {
    float operator()(float a, float b, float c) const { return __builtin_fmaf(a, b, c); }
    double operator()(double a, double b, double c) const { return __builtin_fma(a, b, c); }
};

enum RealFlag : u8 { kFtz = 1, kSat = 2, kNan = 4, kXorSign = 8 };

template <class T, bool kFlush>
inline T in(T x) {
    return kFlush ? flush(x) : x;
}

template <class T, bool kFlush, bool kSaturate>
inline T out(T x) {
    if (kFlush) x = flush(x);
    return kSaturate ? saturate(x) : canonical(x);
}

template <class F, class T, bool kFlush, bool kSaturate>
void op_real2(Warp& w, const Op& op) {
    map2<T, T, T>(w, op.dst, op.a, op.b,
                  [](T a, T b) { return out<T, kFlush, kSaturate>(F{}(in<T, kFlush>(a), in<T, kFlush>(b))); });
}
template <class F, class T, bool kFlush, bool kSaturate>
void op_real3(Warp& w, const Op& op) {
    map3<T, T, T, T>(w, op.dst, op.a, op.b, op.c, [](T a, T b, T c) {
        return out<T, kFlush, kSaturate>(F{}(in<T, kFlush>(a), in<T, kFlush>(b), in<T, kFlush>(c)));
    });
}

// Directed roundings run under the host's rounding mode. volatile keeps the operation inside the scope.
template <class F, class T, bool kFlush, bool kSaturate>
void op_directed2(Warp& w, const Op& op) {
    RoundingScope scope(op.arithmetic.rounding);
    map2<T, T, T>(w, op.dst, op.a, op.b, [](T a, T b) {
        volatile T x = in<T, kFlush>(a), y = in<T, kFlush>(b);
        volatile T r = F{}(static_cast<T>(x), static_cast<T>(y));
        return out<T, kFlush, kSaturate>(static_cast<T>(r));
    });
}
template <class F, class T, bool kFlush, bool kSaturate>
void op_directed3(Warp& w, const Op& op) {
    RoundingScope scope(op.arithmetic.rounding);
    map3<T, T, T, T>(w, op.dst, op.a, op.b, op.c, [](T a, T b, T c) {
        volatile T x = in<T, kFlush>(a), y = in<T, kFlush>(b), z = in<T, kFlush>(c);
        volatile T r = F{}(static_cast<T>(x), static_cast<T>(y), static_cast<T>(z));
        return out<T, kFlush, kSaturate>(static_cast<T>(r));
    });
}

struct RealForm {
    std::string type;
    bool ftz, sat;
    Rounding rounding;
};

RealForm take_real(Form& f) {
    RealForm r;
    r.ftz = f.take("ftz");
    r.sat = f.take("sat");
    std::string mode = f.take_any({"rn", "rz", "rm", "rp"});
    r.rounding = mode == "rz"   ? Rounding::Zero
                 : mode == "rm" ? Rounding::Down
                 : mode == "rp" ? Rounding::Up
                                : Rounding::Nearest;
    r.type = f.take_type();
    if (r.type != "f32" && (r.ftz || r.sat)) f.unsupported(".ftz and .sat need .f32");
    return r;
}

template <class F, int kOperands, bool kFlush, bool kSaturate, class T>
Handler real_handler(Rounding rounding) {
    if constexpr (kOperands == 2)
        return rounding == Rounding::Nearest ? op_real2<F, T, kFlush, kSaturate>
                                             : op_directed2<F, T, kFlush, kSaturate>;
    else
        return rounding == Rounding::Nearest ? op_real3<F, T, kFlush, kSaturate>
                                             : op_directed3<F, T, kFlush, kSaturate>;
}

template <class F, int kOperands>
Handler pick_real(const RealForm& r) {
    if (r.type == "f64") return real_handler<F, kOperands, false, false, double>(r.rounding);
    if (r.ftz)
        return r.sat ? real_handler<F, kOperands, true, true, float>(r.rounding)
                     : real_handler<F, kOperands, true, false, float>(r.rounding);
    return r.sat ? real_handler<F, kOperands, false, true, float>(r.rounding)
                 : real_handler<F, kOperands, false, false, float>(r.rounding);
}

void emit_real(Form& f, Handler fn, const RealForm& r, int operands) {
    Decoder& d = f.decoder;
    Ref a = d.source(f.at(1), r.type), b = operands > 1 ? d.source(f.at(2), r.type) : 0,
        c = operands > 2 ? d.source(f.at(3), r.type) : 0;
    Op& op = d.emit(fn, r.type == "f64" ? OpClass::Double : OpClass::Float);
    op.a = a;
    op.b = b;
    op.c = c;
    op.arithmetic = {r.rounding, 0};
    op.dst = d.dest(f.at(0), type_size(r.type));
}

std::string half_type(const Form& f) {
    for (const char* type : {"f16", "f16x2", "bf16", "bf16x2"})
        if (f.inst.has(type)) return type;
    return "";
}

template <class F>
void decode_real2(Form& f, const char* name) {
    std::string half = half_type(f);
    if (!half.empty()) return decode_half_arithmetic(f, name, half);
    RealForm r = take_real(f);
    emit_real(f, pick_real<F, 2>(r), r, 2);
}

// 9.7.3.10-11 min, max: a NaN loses unless .NaN; -0 < +0.
template <class T, bool kMax>
inline T extremum(T a, T b) {
    bool less = a < b || (a == b && std::signbit(a));
    T chosen = less == kMax ? b : a;
    return a != a ? b : b != b ? a : chosen;
}

template <class T, bool kMax, bool kFlush>
void op_extremum(Warp& w, const Op& op) {
    map2<T, T, T>(w, op.dst, op.a, op.b,
                  [](T a, T b) { return canonical(extremum<T, kMax>(in<T, kFlush>(a), in<T, kFlush>(b))); });
}
// .NaN: "the result is NaN if either input is"; .xorsign.abs: magnitude compare, sign of the product.
template <bool kMax>
void op_extremum_special(Warp& w, const Op& op) {
    u8 flags = op.arithmetic.flags;
    bool nan = flags & kNan, xorsign = flags & kXorSign, ftz = flags & kFtz;
    map2<float, float, float>(w, op.dst, op.a, op.b, [=](float a, float b) {
        if (ftz) a = flush(a), b = flush(b);
        u32 sign = (bit_cast<u32>(a) ^ bit_cast<u32>(b)) & 0x80000000u;
        if (nan && (a != a || b != b)) return canonical(NAN);
        if (!xorsign) return canonical(extremum<float, kMax>(a, b));
        float m = canonical(extremum<float, kMax>(std::fabs(a), std::fabs(b)));
        return m != m ? m : bit_cast<float>(bit_cast<u32>(m) | sign);
    });
}

template <bool kMax>
void decode_real_extremum(Form& f, const char* name) {
    std::string half = half_type(f);
    if (!half.empty()) return decode_half_arithmetic(f, name, half);
    bool nan = f.take("NaN"), xorsign = f.take("xorsign") | f.take("abs");
    RealForm r = take_real(f);
    if (f.size() > 3) f.unsupported("three inputs");
    Handler fn = r.type == "f64" ? op_extremum<double, kMax, false>
                 : r.ftz         ? op_extremum<float, kMax, true>
                                 : op_extremum<float, kMax, false>;
    if (nan || xorsign) fn = op_extremum_special<kMax>;
    emit_real(f, fn, r, 2);
    f.decoder.program().code.back().arithmetic.flags =
        static_cast<u8>((nan ? kNan : 0) | (xorsign ? kXorSign : 0) | (r.ftz ? kFtz : 0));
}

// 9.7.3.8-9 abs, neg act on the sign bit.
template <class T, bool kNegate, bool kFlush>
void op_sign(Warp& w, const Op& op) {
    map1<T, T>(w, op.dst, op.a, [](T x) {
        x = in<T, kFlush>(x);
        using B = Bits<T>;
        constexpr B kSign = B(1) << (8 * sizeof(T) - 1);
        B bits = bit_cast<B>(x);
        return bit_cast<T>(static_cast<B>(kNegate ? bits ^ kSign : bits & ~kSign));
    });
}

template <bool kNegate>
void decode_real_sign(Form& f, const char* name) {
    std::string half = half_type(f);
    if (!half.empty()) return decode_half_arithmetic(f, name, half);
    RealForm r = take_real(f);
    emit_real(f,
              r.type == "f64" ? op_sign<double, kNegate, false>
              : r.ftz         ? op_sign<float, kNegate, true>
                              : op_sign<float, kNegate, false>,
              r, 1);
}

// 9.7.3.13-14 rcp.rn, sqrt.rn and their directed roundings.
template <class T, bool kRoot, bool kFlush>
void op_inverse(Warp& w, const Op& op) {
    RoundingScope scope(op.arithmetic.rounding);
    map1<T, T>(w, op.dst, op.a, [](T x) {
        volatile T v = in<T, kFlush>(x);
        volatile T r = kRoot ? static_cast<T>(std::sqrt(static_cast<T>(v))) : T(1) / v;
        return out<T, kFlush, false>(static_cast<T>(r));
    });
}

template <bool kRoot>
void decode_inverse(Form& f) {
    if (f.inst.has("approx")) return decode_approximate(f, kRoot ? "sqrt" : "rcp");
    RealForm r = take_real(f);
    emit_real(f,
              r.type == "f64" ? op_inverse<double, kRoot, false>
              : r.ftz         ? op_inverse<float, kRoot, true>
                              : op_inverse<float, kRoot, false>,
              r, 1);
}

}  // namespace

void decode_float_add(Form& f) { decode_real2<FAdd>(f, "add"); }
void decode_float_sub(Form& f) { decode_real2<FSub>(f, "sub"); }
void decode_float_mul(Form& f) { decode_real2<FMul>(f, "mul"); }
void decode_float_min(Form& f) { decode_real_extremum<false>(f, "min"); }
void decode_float_max(Form& f) { decode_real_extremum<true>(f, "max"); }
void decode_float_abs(Form& f) { decode_real_sign<false>(f, "abs"); }
void decode_float_neg(Form& f) { decode_real_sign<true>(f, "neg"); }

// 9.7.3.7 div: .approx and .full are within 2 ulp; the quotient itself is. But .approx multiplies by a reciprocal that
// underflows: "for 2^126 < |b| < 2^128, if a is infinity the result is NaN, otherwise 0".
struct FDivApprox {
    float operator()(float a, float b) const {
        float magnitude = std::fabs(b);
        return magnitude > 0x1p126f && magnitude < INFINITY ? a * std::copysign(0.0f, b) : a / b;
    }
};

void decode_float_div(Form& f) {
    if (!f.take("approx")) {
        f.take("full");
        return decode_real2<FDiv>(f, "div");
    }
    RealForm r = take_real(f);
    if (r.type != "f32") f.unsupported("type ." + r.type);
    emit_real(f, r.ftz ? op_real2<FDivApprox, float, true, false> : op_real2<FDivApprox, float, false, false>, r, 2);
}

// 9.7.3.6 fma, 9.7.3.5 mad: "infinite precision in the intermediate product".
void decode_float_fma(Form& f) {
    std::string half = half_type(f);
    if (!half.empty()) return decode_half_arithmetic(f, "fma", half);
    RealForm r = take_real(f);
    emit_real(f, pick_real<FFma, 3>(r), r, 3);
}

void add_float_families(FamilyTable& t) {
    t["fma"] = decode_float_fma;
    t["rcp"] = decode_inverse<false>;
    t["sqrt"] = decode_inverse<true>;
}

}  // namespace ptxsim
