// The .approx functions (PTX ISA 9.7.3.15-21): rcp, sqrt, rsqrt, sin, cos, lg2, ex2, tanh. The ISA bounds their error,
// not their bits: values are computed in double, and ex2's last bit depends on the seed.
#include "control.h"
#include "cta.h"
#include "fp.h"
#include "integer.h"
#include "lanes.h"

namespace ptxsim {

namespace {

// 2^x for |x| < 150: x = n + r with |r| <= 1/2, a degree-7 polynomial for 2^r, then the exponent in the bits.
inline double exp2_double(double x) {
    double shifted = x + 0x1.8p52, n = shifted - 0x1.8p52;  // the low bits of `shifted` are round(x)
    double r = (x - n) * 0.6931471805599453094;
    double p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    return p * bit_cast<double>((bit_cast<u64>(shifted) + 1023) << 52);
}

// "2^x with a maximum relative error of 2^-22": one unit in the last place of slack goes to the seed. Integers are
// exact.
inline float exp2_seeded(float x, float clamped, float y, u32 seed) {
    u32 bits = bit_cast<u32>(y), quarter = ((bit_cast<u32>(x) ^ seed) * 0x9e3779b1u) >> 30;
    u32 inexact = clamped != __builtin_nearbyintf(clamped) ? 1u : 0u,
        normal = (bits > 0x00800000u ? 1u : 0u) & (bits < 0x7f7fffffu ? 1u : 0u);
    u32 nudge = (quarter == 0 ? 1u : 0u) - (quarter == 1 ? 1u : 0u);
    return bit_cast<float>(bits + nudge * (inexact & normal));
}

// Three passes over the lanes, each of one width, so that each vectorises.
template <bool kFlush>
void op_ex2(Warp& w, const Op& op) {
    u32 seed = static_cast<u32>(w.cta->launch->seed);
    w.cta->counters->ex2 += static_cast<u64>(popcount(w.active));
    const u32* a = w.cells<u32>(op.a);
    alignas(32) float x[kLanes], clamped[kLanes], y[kLanes];
    alignas(32) u32 t[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        float v = bit_cast<float>(a[i]);
        x[i] = kFlush ? flush(v) : v;
        float high = x[i] > 129.0f ? 129.0f : x[i];
        clamped[i] = high > -150.0f ? high : -150.0f;  // a NaN ends here too
    }
    for (int i = 0; i < kLanes; ++i) y[i] = static_cast<float>(exp2_double(clamped[i]));
    for (int i = 0; i < kLanes; ++i) {
        float r = exp2_seeded(x[i], clamped[i], y[i], seed);
        if (kFlush) r = flush(r);
        t[i] = x[i] == x[i] ? bit_cast<u32>(r) : 0x7fffffffu;
    }
    blend(w.cells<u32>(op.dst), t, w.active);
    w.define(op.dst, w.defined(op.a));
}

struct Rcp {
    static double value(double x) { return 1.0 / x; }
};
struct Sqrt {
    static double value(double x) { return std::sqrt(x); }
};
struct Rsqrt {
    static double value(double x) { return 1.0 / std::sqrt(x); }
};
struct Sin {
    static double value(double x) { return std::sin(x); }
};
struct Cos {
    static double value(double x) { return std::cos(x); }
};
struct Lg2 {
    static double value(double x) { return std::log2(x); }
};
struct Tanh {
    static double value(double x) { return std::tanh(x); }
};

template <class F, bool kFlush>
void op_approximate(Warp& w, const Op& op) {
    map1<float, float>(w, op.dst, op.a, [](float x) {
        if (kFlush) x = flush(x);
        float y = static_cast<float>(F::value(x));
        return canonical(kFlush ? flush(y) : y);
    });
}

// 9.7.3.13, 9.7.3.17: with .ftz the f64 forms look at the upper 32 bits only and flush.
template <class F, bool kFlush>
void op_approximate_double(Warp& w, const Op& op) {
    map1<double, double>(w, op.dst, op.a, [](double x) {
        if (!kFlush) return F::value(x);
        auto upper = [](u64 bits) {
            bits &= ~0xffffffffull;
            return (bits & 0x7ff0000000000000ull) == 0 ? bits & (1ull << 63) : bits;
        };
        return bit_cast<double>(upper(bit_cast<u64>(F::value(bit_cast<double>(upper(bit_cast<u64>(x)))))));
    });
}

template <class F>
Handler pick(const std::string& type, bool ftz) {
    if (type == "f64") return ftz ? op_approximate_double<F, true> : op_approximate_double<F, false>;
    return ftz ? op_approximate<F, true> : op_approximate<F, false>;
}

Handler handler_of(Form& f, const std::string& function, const std::string& type, bool ftz) {
    if (function == "rcp") return pick<Rcp>(type, ftz);
    if (function == "sqrt") return pick<Sqrt>(type, ftz);
    if (function == "rsqrt") return pick<Rsqrt>(type, ftz);
    if (function == "sin") return pick<Sin>(type, ftz);
    if (function == "cos") return pick<Cos>(type, ftz);
    if (function == "lg2") return pick<Lg2>(type, ftz);
    if (function == "tanh") return pick<Tanh>(type, ftz);
    if (function == "ex2") return ftz ? op_ex2<true> : op_ex2<false>;
    f.unsupported();
}

template <int kFunction>
void decode_named(Form& f) {
    static const char* names[] = {"rsqrt", "sin", "cos", "lg2", "ex2", "tanh"};
    decode_approximate(f, names[kFunction]);
}

}  // namespace

void decode_approximate(Form& f, const std::string& function) {
    for (const char* half : {"f16", "f16x2", "bf16", "bf16x2"})
        if (f.inst.has(half)) return decode_half_approximate(f, function, half);
    f.take("approx");
    bool ftz = f.take("ftz");
    std::string type = f.take_type();
    if (type == "f64" && function != "rcp" && function != "rsqrt") f.unsupported("type .f64");
    Ref a = f.decoder.source(f.at(1), type);
    Op& op = f.decoder.emit(handler_of(f, function, type, ftz), OpClass::Special);
    op.a = a;
    op.dst = f.decoder.dest(f.at(0), type == "f64" ? 8 : 4);
}

void add_approximate_families(FamilyTable& t) {
    t["rsqrt"] = decode_named<0>;
    t["sin"] = decode_named<1>;
    t["cos"] = decode_named<2>;
    t["lg2"] = decode_named<3>;
    t["ex2"] = decode_named<4>;
    t["tanh"] = decode_named<5>;
}

}  // namespace ptxsim
