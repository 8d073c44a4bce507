// cvt (PTX ISA 9.7.9.21): between integers, f16, bf16, f32, f64, tf32, with rounding, saturation, .ftz and .relu;
// packed halves.
#include "control.h"
#include "convert_fp8.h"
#include "fp.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

enum ConvertFlag : u8 { kFtz = 1, kSat = 2, kRelu = 4, kSatFinite = 8, kToInteger = 16 };

struct Tf32 { u32 bits; };

template <class T> constexpr bool kIsInteger = std::is_integral_v<T>;

inline double widen(Half h) { return to_float(h); }
inline double widen(Bfloat b) { return to_float(b); }
inline double widen(float x) { return x; }
inline double widen(double x) { return x; }

// Subnormal inputs under .ftz (single precision only).
template <class T> inline T flush_input(T x, u8) { return x; }
inline float flush_input(float x, u8 flags) { return flags & kFtz ? flush(x) : x; }

double round_integral(double x, Rounding r) {
    switch (r) {
        case Rounding::Zero: return std::trunc(x);
        case Rounding::Down: return std::floor(x);
        case Rounding::Up: return std::ceil(x);
        default: return std::nearbyint(x);
    }
}

// Out of range clamps. NaN gives 0, but "1 << (BitWidth(dst) - 1)" if the source is .f64 or the destination has 64
// bits.
template <class D, bool kFromDouble>
D to_integer(double x, Rounding r) {
    if (x != x) return sizeof(D) == 8 || kFromDouble ? static_cast<D>(1ull << (8 * sizeof(D) - 1)) : 0;
    double y = round_integral(x, r);
    constexpr D kLow = std::numeric_limits<D>::min(), kHigh = std::numeric_limits<D>::max();
    if (y <= static_cast<double>(kLow)) return kLow;
    if (y >= static_cast<double>(kHigh)) return kHigh;
    return static_cast<D>(y);
}

// Integer to integer: .sat clamps, otherwise the low bits.
template <class D, class S>
D between_integers(S x, u8 flags) {
    if (!(flags & kSat)) return static_cast<D>(x);
    __int128 v = x, low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
    return static_cast<D>(v < low ? low : v > high ? high : v);
}

double round_float(double x, Rounding r) {
    if (r == Rounding::Nearest) return static_cast<float>(x);
    return round_to_format(x, 23, -126, 127, r);
}

// A 64-bit integer with `bits` significant bits, rounded as said: exact as a double.
double round_wide(bool negative, u64 magnitude, int bits, Rounding r) {
    int drop = magnitude ? 64 - __builtin_clzll(magnitude) - bits : 0;
    if (drop <= 0) return negative ? -static_cast<double>(magnitude) : static_cast<double>(magnitude);
    u64 kept = magnitude >> drop, rest = magnitude & ((1ull << drop) - 1), tie = 1ull << (drop - 1);
    bool up = r == Rounding::Nearest ? rest > tie || (rest == tie && (kept & 1))
              : r == Rounding::Up    ? rest && !negative
              : r == Rounding::Down  ? rest && negative
                                     : false;
    double value = std::ldexp(static_cast<double>(kept + up), drop);
    return negative ? -value : value;
}

template <class D> constexpr int kSignificant = 53;
template <> constexpr int kSignificant<float> = 24;
template <> constexpr int kSignificant<Bfloat> = 8;

void store_real(double x, Rounding r, u8 flags, Half& out) {
    u16 bits = half_bits(x, r);
    if ((flags & kSatFinite) && (bits & 0x7fff) == 0x7c00) bits = static_cast<u16>((bits & 0x8000) | 0x7bff);
    out.bits = bits;
}
void store_real(double x, Rounding r, u8 flags, Bfloat& out) {
    u16 bits = bfloat_bits(x, r);
    if ((flags & kSatFinite) && (bits & 0x7fff) == 0x7f80) bits = static_cast<u16>((bits & 0x8000) | 0x7f7f);
    out.bits = bits;
}
void store_real(double x, Rounding r, u8 flags, float& out) {
    float y = static_cast<float>(round_float(x, r));
    out = canonical(flags & kFtz ? flush(y) : y);
}
void store_real(double x, Rounding, u8, double& out) { out = x; }
// .tf32: 10 bits of mantissa in a single-precision container; .rna rounds ties away from zero.
void store_real(double x, Rounding r, u8, Tf32& out) {
    out.bits = x != x ? 0x7fffffffu : bit_cast<u32>(static_cast<float>(round_to_format(x, 10, -126, 127, r)));
}

template <class D, class S>
D convert(S x, Rounding r, u8 flags) {
    if constexpr (kIsInteger<D> && kIsInteger<S>) {
        return between_integers<D>(x, flags);
    } else if constexpr (kIsInteger<D>) {
        return to_integer<D, std::is_same_v<S, double>>(widen(flush_input(x, flags)), r);
    } else {
        D out;
        if constexpr (kIsInteger<S>) {
            double y = static_cast<double>(x);
            if constexpr (sizeof(S) == 8) {  // 64 bits do not fit a double: round once
                bool negative = x < 0;
                u64 magnitude = negative ? 0 - static_cast<u64>(x) : static_cast<u64>(x);
                y = round_wide(negative, magnitude, kSignificant<D>, r);
            }
            store_real(flags & kSat ? saturate(y) : y, r, flags, out);
        } else {
            double y = widen(flush_input(x, flags));
            if (flags & kToInteger) y = y != y || std::isinf(y) ? y : std::copysign(round_integral(y, r), y);
            if (flags & kSat) y = saturate(y);
            if ((flags & kRelu) && y < 0) y = 0;
            if (std::is_same_v<D, double> && std::is_same_v<S, double> && y == 0)
                y = std::copysign(0.0, static_cast<double>(widen(x)));
            store_real(y, r, flags, out);
        }
        return out;
    }
}

// A 32-bit destination register of an 8- or 16-bit type is extended by its sign; so a narrow source is read by its
// type.
template <class D, class S>
void op_cvt(Warp& w, const Op& op) {
    Rounding r = op.convert.rounding;
    u8 flags = op.convert.flags;
    u32 t[kLanes];
    u64 t64[kLanes];
    bool wide_source = op.convert.wide_source, wide_dest = op.convert.wide_result,
         narrow_dest = op.convert.narrow_result;
    auto load = [&](int i) -> S {
        u64 cell = wide_source ? w.cells<u64>(op.a)[i] : w.cells<u32>(op.a)[i];
        return bit_cast<S>(static_cast<Bits<S>>(cell));
    };
    u32 known = w.defined(op.a);
    for (int i = 0; i < kLanes; ++i) {
        D y = convert<D, S>(load(i), r, flags);
        if constexpr (kIsInteger<D>) t64[i] = static_cast<u64>(static_cast<s64>(y));
        else t64[i] = bit_cast<Bits<D>>(y);
        t[i] = narrow_dest ? static_cast<u32>(t64[i] & 0xffff) : static_cast<u32>(t64[i]);
    }
    if (wide_dest) blend(w.cells<u64>(op.dst), t64, w.active);
    else blend(w.cells<u32>(op.dst), t, w.active);
    w.define(op.dst, known);
}

// The frequent pairs have vector loops of their own.
template <class D, class S>
void op_cvt_plain(Warp& w, const Op& op) {
    map1<D, S>(w, op.dst, op.a, [](S x) { return static_cast<D>(x); });
}

template <class D>
Handler for_source(Form& f, const std::string& s) {
    if (s == "s8") return op_cvt<D, s8>;
    if (s == "u8") return op_cvt<D, u8>;
    if (s == "s16") return op_cvt<D, s16>;
    if (s == "u16") return op_cvt<D, u16>;
    if (s == "s32") return op_cvt<D, s32>;
    if (s == "u32") return op_cvt<D, u32>;
    if (s == "s64") return op_cvt<D, s64>;
    if (s == "u64") return op_cvt<D, u64>;
    if (s == "f16") return op_cvt<D, Half>;
    if (s == "bf16") return op_cvt<D, Bfloat>;
    if (s == "f32") return op_cvt<D, float>;
    if (s == "f64") return op_cvt<D, double>;
    f.unsupported("source type ." + s);
}

Handler handler_of(Form& f, const std::string& d, const std::string& s) {
    if (d == "s8") return for_source<s8>(f, s);
    if (d == "u8") return for_source<u8>(f, s);
    if (d == "s16") return for_source<s16>(f, s);
    if (d == "u16") return for_source<u16>(f, s);
    if (d == "s32") return for_source<s32>(f, s);
    if (d == "u32") return for_source<u32>(f, s);
    if (d == "s64") return for_source<s64>(f, s);
    if (d == "u64") return for_source<u64>(f, s);
    if (d == "f16") return for_source<Half>(f, s);
    if (d == "bf16") return for_source<Bfloat>(f, s);
    if (d == "f32") return for_source<float>(f, s);
    if (d == "f64") return for_source<double>(f, s);
    if (d == "tf32" && s == "f32") return op_cvt<Tf32, float>;
    f.unsupported("destination type ." + d);
}

Handler plain_handler(const std::string& d, const std::string& s) {
    if (d == "f32" && s == "s32") return op_cvt_plain<float, s32>;
    if (d == "f32" && s == "u32") return op_cvt_plain<float, u32>;
    if (d == "s64" && s == "s32") return op_cvt_plain<s64, s32>;
    if (d == "u64" && s == "u32") return op_cvt_plain<u64, u32>;
    if ((d == "u32" || d == "s32") && (s == "u64" || s == "s64")) return op_cvt_plain<u32, u64>;
    return nullptr;
}

// cvt.rn.bf16x2.f32 d, a, b: "a goes to the upper half, b to the lower".
template <class H>
void op_cvt_pair(Warp& w, const Op& op) {
    Rounding r = op.arithmetic.rounding;
    u8 flags = op.arithmetic.flags;
    map2<u32, float, float>(w, op.dst, op.a, op.b, [=](float a, float b) {
        if (flags & kRelu) a = a < 0 ? 0 : a, b = b < 0 ? 0 : b;
        H high, low;
        store_real(a, r, flags, high);
        store_real(b, r, flags, low);
        return static_cast<u32>(high.bits) << 16 | low.bits;
    });
}
// To nearest, without flags: plain integer arithmetic per lane.
void op_cvt_pair_bfloat(Warp& w, const Op& op) {
    map2<u32, float, float>(w, op.dst, op.a, op.b, [](float a, float b) {
        return static_cast<u32>(bfloat_from_float(a)) << 16 | bfloat_from_float(b);
    });
}
void op_cvt_pair_half(Warp& w, const Op& op) {
    map2<u32, float, float>(w, op.dst, op.a, op.b, [](float a, float b) {
        return static_cast<u32>(half_from_float(a)) << 16 | half_from_float(b);
    });
}

Rounding take_rounding(Form& f, u8& flags) {
    std::string mode = f.take_any({"rni", "rzi", "rmi", "rpi", "rna", "rn", "rz", "rm", "rp"});
    if (mode.size() == 3 && mode != "rna") flags |= kToInteger;
    if (mode == "rna") return Rounding::NearestAway;
    if (mode.size() < 2) return Rounding::Nearest;
    return mode[1] == 'z'   ? Rounding::Zero
           : mode[1] == 'm' ? Rounding::Down
           : mode[1] == 'p' ? Rounding::Up
                            : Rounding::Nearest;
}

void decode_pair(Form& f, const std::string& to, Rounding r, u8 flags) {
    if (f.take_type() != "f32") f.unsupported();
    Decoder& d = f.decoder;
    Ref a = d.source(f.at(1), 4), b = d.source(f.at(2), 4);
    bool plain = r == Rounding::Nearest && flags == 0, bfloat = to == "bf16x2";
    Op& op = d.emit(plain    ? (bfloat ? op_cvt_pair_bfloat : op_cvt_pair_half)
                    : bfloat ? op_cvt_pair<Bfloat>
                             : op_cvt_pair<Half>,
                    OpClass::Convert);
    op.a = a;
    op.b = b;
    op.arithmetic = {r, flags};
    op.dst = d.dest(f.at(0), 4);
}

bool is_integer(const std::string& type) { return type[0] == 's' || type[0] == 'u'; }

void decode_cvt(Form& f) {
    Decoder& d = f.decoder;
    u8 flags = 0;
    Rounding r = take_rounding(f, flags);
    if (f.take("ftz")) flags |= kFtz;
    if (f.take("sat")) flags |= kSat;
    if (f.take("relu")) flags |= kRelu;
    if (f.take("satfinite")) flags |= kSatFinite;
    std::string to = f.take_first_type();
    if (f.inst.has("e4m3x2") || f.inst.has("e5m2x2")) {
        bool saturates = flags & kSatFinite;
        if (r != Rounding::Nearest || (flags & (kFtz | kSat | kToInteger)) || saturates != is_fp8_pair(to))
            f.unsupported("8-bit floats are made by .rn.satfinite and read by .rn");
        return decode_cvt_fp8(f, to, flags & kRelu);
    }
    if (to == "f16x2" || to == "bf16x2") return decode_pair(f, to, r, flags);
    std::string from = f.take_first_type();
    if (is_integer(to) && !is_integer(from) && !(flags & kToInteger)) r = Rounding::Zero;
    int from_bytes = f.at(1).kind == Operand::kReg ? d.operand_bytes(f.at(1)) : type_size(from);
    int to_bytes = f.at(0).kind == Operand::kReg ? d.operand_bytes(f.at(0)) : type_size(to);
    Handler plain = flags == 0 && r == Rounding::Nearest && from_bytes == type_size(from) && to_bytes == type_size(to)
                        ? plain_handler(to, from)
                        : nullptr;
    Ref a = d.source(f.at(1), from_bytes);
    Op& op = d.emit(plain ? plain : handler_of(f, to, from), OpClass::Convert);
    op.a = a;
    op.convert = {r, flags, from_bytes == 8, to_bytes == 8, to_bytes <= 2};
    op.dst = d.dest(f.at(0), to_bytes);
}

// cvt.pack.sat (9.7.9.22): two saturated integers side by side.
template <class D>
void op_cvt_pack(Warp& w, const Op& op) {
    map3<u32, s32, s32, u32>(w, op.dst, op.a, op.b, op.c, [](s32 a, s32 b, u32 c) {
        constexpr u32 kWidth = 8 * sizeof(D);
        u32 high = static_cast<std::make_unsigned_t<D>>(between_integers<D>(a, kSat)),
            low = static_cast<std::make_unsigned_t<D>>(between_integers<D>(b, kSat));
        u32 pair = high << kWidth | low;
        return kWidth == 16 ? pair : (c << 16) | pair;
    });
}

void decode_cvt_family(Form& f) {
    if (!f.take("pack")) return decode_cvt(f);
    f.take("sat");
    std::string to = f.take_first_type();
    f.take_first_type();
    bool accumulate = f.take("b32");
    Ref a = f.decoder.source(f.at(1), 4), b = f.decoder.source(f.at(2), 4),
        c = accumulate ? f.decoder.source(f.at(3), 4) : f.decoder.constant(0, 4);
    Op& op = f.decoder.emit(to == "s16"   ? op_cvt_pack<s16>
                            : to == "u16" ? op_cvt_pack<u16>
                            : to == "s8"  ? op_cvt_pack<s8>
                                          : op_cvt_pack<u8>,
                            OpClass::Convert);
    op.a = a;
    op.b = b;
    op.c = c;
    op.dst = f.decoder.dest(f.at(0), 4);
}

}  // namespace

void add_convert_families(FamilyTable& t) { t["cvt"] = decode_cvt_family; }

}  // namespace ptxsim
