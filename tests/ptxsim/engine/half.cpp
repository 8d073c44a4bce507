// Half-precision arithmetic (PTX ISA 9.7.4) for .f16, .bf16 and their packed pairs. Single precision has more than 2p +
// 2 bits of either format, so rounding a single result again is exact for +, -, x, /; fma goes through round-to-odd in
// double.
#include "control.h"
#include "fp.h"
#include "integer.h"
#include "lanes.h"

namespace ptxsim {

namespace {

enum HalfFlag : u8 { kFtz = 1, kSat = 2, kRelu = 4, kNan = 8, kXorSign = 16, kMode = 0x60 };

u16 narrow(Half, double x) { return half_bits(x); }
u16 narrow(Bfloat, double x) { return bfloat_bits(x); }
float flush_half(Half, float x) { return std::fabs(x) < 6.103515625e-05f ? std::copysign(0.0f, x) : x; }
float flush_half(Bfloat, float x) { return flush(x); }

// The sum of an exact product and c, rounded to odd, so that the second rounding sees what it needs.
double fma_to_odd(float a, float b, float c) {
    double p = static_cast<double>(a) * b, z = c, s = p + z;
    if (std::isinf(s) || s != s) return s;
    double back = s - p, error = (p - (s - back)) + (z - back);
    if (error == 0 || (bit_cast<u64>(s) & 1)) return s;
    bool outward = (error > 0) == (s > 0);
    return bit_cast<double>(bit_cast<u64>(s) + (outward ? 1 : ~0ull));
}

struct HAdd {
    static double value(float a, float b, float) { return a + b; }
};
struct HSub {
    static double value(float a, float b, float) { return a - b; }
};
struct HMul {
    static double value(float a, float b, float) { return static_cast<double>(a) * b; }
};
struct HFma {
    static double value(float a, float b, float c) { return fma_to_odd(a, b, c); }
};

u16 flush_bits(u16 a, u8 flags) {
    return (flags & kFtz) && (a & 0x7c00) == 0 ? a & 0x8000 : a;
}  // .ftz exists for .f16 only

template <class F, class H>
u16 arithmetic(u16 a, u16 b, u16 c, u8 flags) {
    float x = to_float(H{a}), y = to_float(H{b}), z = to_float(H{c});
    if (flags & kFtz) x = flush_half(H{}, x), y = flush_half(H{}, y), z = flush_half(H{}, z);
    double r = F::value(x, y, z);
    if (flags & kSat) r = saturate(r);
    if ((flags & kRelu) && r < 0) r = 0;  // ".relu clamps negative results to 0", a NaN stays
    u16 bits = narrow(H{}, r);
    return flush_bits(bits, flags);
}

// 9.7.4.6-7 min, max on the values; the chosen operand's bits are the result.
template <bool kMax, class H>
u16 extremum(u16 a, u16 b, u8 flags) {
    if (flags & kFtz)
        a = narrow(H{}, flush_half(H{}, to_float(H{a}))), b = narrow(H{}, flush_half(H{}, to_float(H{b})));
    float x = to_float(H{a}), y = to_float(H{b});
    bool nan_a = x != x, nan_b = y != y;
    if ((nan_a && nan_b) || ((flags & kNan) && (nan_a || nan_b))) return 0x7fff;
    if (flags & kXorSign) {
        u16 sign = (a ^ b) & 0x8000, m = extremum<kMax, H>(a & 0x7fff, b & 0x7fff, 0);
        return static_cast<u16>(m | sign);
    }
    if (nan_a) return b;
    if (nan_b) return a;
    bool less = x < y || (x == y && (a & 0x8000));
    return less == kMax ? b : a;
}

struct HMin {
    template <class H> static u16 apply(u16 a, u16 b, u16, u8 f) { return extremum<false, H>(a, b, f); }
};
struct HMax {
    template <class H> static u16 apply(u16 a, u16 b, u16, u8 f) { return extremum<true, H>(a, b, f); }
};
struct HAbs {
    template <class H> static u16 apply(u16 a, u16, u16, u8 f) { return flush_bits(a, f) & 0x7fff; }
};
struct HNeg {
    template <class H> static u16 apply(u16 a, u16, u16, u8 f) { return flush_bits(a, f) ^ 0x8000; }
};
template <class F>
struct HReal {
    template <class H> static u16 apply(u16 a, u16 b, u16 c, u8 f) { return arithmetic<F, H>(a, b, c, f); }
};

struct HTanh {
    template <class H> static u16 apply(u16 a, u16, u16, u8) {
        return narrow(H{}, std::tanh(static_cast<double>(to_float(H{a}))));
    }
};
// ex2.approx.ftz.bf16 flushes: "subnormal results are flushed to sign-preserving zero". The .f16 forms do not.
struct HEx2 {
    template <class H> static u16 apply(u16 a, u16, u16, u8 flags) {
        u16 bits = narrow(H{}, std::exp2(static_cast<double>(to_float(H{a}))));
        return (flags & kFtz) && std::is_same_v<H, Bfloat> && bits < 0x80 ? 0 : bits;
    }
};

template <class F, class H, bool kPair>
void op_half(Warp& w, const Op& op) {
    u8 flags = op.arithmetic.flags;
    map3<u32, u32, u32, u32>(w, op.dst, op.a, op.b, op.c, [flags](u32 a, u32 b, u32 c) {
        u32 low = F::template apply<H>(static_cast<u16>(a), static_cast<u16>(b), static_cast<u16>(c), flags);
        if (!kPair) return low;
        u32 high = F::template apply<H>(static_cast<u16>(a >> 16), static_cast<u16>(b >> 16), static_cast<u16>(c >> 16),
                                        flags);
        return high << 16 | low;
    });
}

template <class F>
Handler pick(const std::string& type) {
    if (type == "f16") return op_half<F, Half, false>;
    if (type == "f16x2") return op_half<F, Half, true>;
    return type == "bf16" ? op_half<F, Bfloat, false> : op_half<F, Bfloat, true>;
}

Handler handler_of(Form& f, const std::string& operation, const std::string& type) {
    if (operation == "add") return pick<HReal<HAdd>>(type);
    if (operation == "sub") return pick<HReal<HSub>>(type);
    if (operation == "mul") return pick<HReal<HMul>>(type);
    if (operation == "fma") return pick<HReal<HFma>>(type);
    if (operation == "min") return pick<HMin>(type);
    if (operation == "max") return pick<HMax>(type);
    if (operation == "abs") return pick<HAbs>(type);
    if (operation == "neg") return pick<HNeg>(type);
    if (operation == "tanh") return pick<HTanh>(type);
    if (operation == "ex2") return pick<HEx2>(type);
    f.unsupported();
}

void emit_half(Form& f, const std::string& operation, const std::string& type, int operands, u8 flags, OpClass cls) {
    Decoder& d = f.decoder;
    int bytes = type == "f16" || type == "bf16" ? 2 : 4;
    Ref a = d.source(f.at(1), bytes), b = operands > 1 ? d.source(f.at(2), bytes) : a,
        c = operands > 2 ? d.source(f.at(3), bytes) : a;
    Handler fn = handler_of(f, operation, type);
    Op& op = d.emit(fn, cls);
    op.a = a;
    op.b = b;
    op.c = c;
    op.arithmetic = {Rounding::Nearest, flags};
    op.dst = d.dest(f.at(0), bytes);
}

}  // namespace

void decode_half_arithmetic(Form& f, const std::string& operation, const std::string& type) {
    u8 flags = 0;
    f.take("rn");
    if (f.take("ftz")) flags |= kFtz;
    if (f.take("sat")) flags |= kSat;
    if (f.take("relu")) flags |= kRelu;
    if (f.take("NaN")) flags |= kNan;
    if (f.take("xorsign")) flags |= kXorSign;
    f.take("abs");
    f.take_type();
    if (f.size() > 4) f.unsupported("too many operands");
    int operands = operation == "fma" ? 3 : operation == "abs" || operation == "neg" ? 1 : 2;
    emit_half(f, operation, type, operands, flags, OpClass::Half);
}

void decode_half_approximate(Form& f, const std::string& operation, const std::string& type) {
    f.take("approx");
    u8 flags = f.take("ftz") ? kFtz : 0;
    f.take_type();
    emit_half(f, operation, type, 1, flags, OpClass::Special);
}

}  // namespace ptxsim
