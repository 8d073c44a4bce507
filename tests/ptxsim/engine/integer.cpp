// Integer arithmetic (PTX ISA 9.7.1): add, sub, abs, neg, min, max, div, rem, sad, and the carries of 9.7.2.
#include "integer.h"
#include "control.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Two's complement wraps; C++ signed overflow would not.
struct Add {
    template <class T> T operator()(T a, T b) const {
        return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
    }
};
struct Sub {
    template <class T> T operator()(T a, T b) const {
        return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
    }
};
struct Min {
    template <class T> T operator()(T a, T b) const { return a < b ? a : b; }
};
struct Max {
    template <class T> T operator()(T a, T b) const { return a < b ? b : a; }
};
struct AddSat {
    template <class T> T operator()(T a, T b) const {
        s64 r = static_cast<s64>(a) + b;
        return static_cast<T>(r > INT32_MAX ? INT32_MAX : r < INT32_MIN ? INT32_MIN : r);
    }
};
struct SubSat {
    template <class T> T operator()(T a, T b) const {
        s64 r = static_cast<s64>(a) - b;
        return static_cast<T>(r > INT32_MAX ? INT32_MAX : r < INT32_MIN ? INT32_MIN : r);
    }
};

// 9.7.1.8 div: "Division by zero yields an unspecified, machine-specific value": all ones, as the hardware gives.
struct Div {
    template <class T> T operator()(T a, T b) const {
        if (b == 0) return static_cast<T>(~Unsigned<T>(0));
        if (std::is_signed_v<T> && b == static_cast<T>(-1))
            return static_cast<T>(Unsigned<T>(0) - static_cast<Unsigned<T>>(a));
        return static_cast<T>(a / b);
    }
};
struct Rem {
    template <class T> T operator()(T a, T b) const {
        if (b == 0) return a;
        if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
        return static_cast<T>(a % b);
    }
};
struct Abs {
    template <class T> T operator()(T a) const {
        return a < 0 ? static_cast<T>(Unsigned<T>(0) - static_cast<Unsigned<T>>(a)) : a;
    }
};
struct Neg {
    template <class T> T operator()(T a) const { return static_cast<T>(Unsigned<T>(0) - static_cast<Unsigned<T>>(a)); }
};

template <class F, class T>
void op_binary(Warp& w, const Op& op) {
    map2<T, T, T>(w, op.dst, op.a, op.b, F{});
}
template <class F, class T>
void op_unary(Warp& w, const Op& op) {
    map1<T, T>(w, op.dst, op.a, F{});
}

// Two 16-bit halves at a time (.u16x2, .s16x2).
template <class F, class H>
void op_packed(Warp& w, const Op& op) {
    map2<u32, u32, u32>(w, op.dst, op.a, op.b, [](u32 a, u32 b) {
        u32 low = static_cast<u16>(F{}(static_cast<H>(a), static_cast<H>(b)));
        u32 high = static_cast<u16>(F{}(static_cast<H>(a >> 16), static_cast<H>(b >> 16)));
        return high << 16 | low;
    });
}

template <class F>
void decode_binary(Form& f) {
    std::string type = f.take_type();
    if (type == "u16x2") return emit_binary(f, op_packed<F, u16>, 4);
    if (type == "s16x2") return emit_binary(f, op_packed<F, s16>, 4);
    emit_binary(f, by_integer_type(f, type, [](auto t) -> Handler { return op_binary<F, decltype(t)>; }),
                type_size(type));
}

// 9.7.1.16 sad: "d = c + ((a<b) ? b-a : a-b)".
template <class T>
void op_sad(Warp& w, const Op& op) {
    map3<T, T, T, T>(w, op.dst, op.a, op.b, op.c,
                     [](T a, T b, T c) { return Add{}(c, a < b ? Sub{}(b, a) : Sub{}(a, b)); });
}

// 9.7.2: add.cc, addc, sub.cc, subc. The carry flag is one bit a lane.
template <class T, bool kSubtract, bool kCarryIn, bool kCarryOut>
void op_carry(Warp& w, const Op& op) {
    using U = Unsigned<T>;
    const U *a = w.cells<U>(op.a), *b = w.cells<U>(op.b);
    U* d = w.cells<U>(op.dst);
    u32 known = w.defined(op.a) & w.defined(op.b) & (kCarryIn ? w.carry_defined : kFull);
    for_lanes(w.active, [&](int i) {
        U x = a[i], y = kSubtract ? static_cast<U>(~b[i]) : b[i];
        bool in = kCarryIn ? (kSubtract ? !lane_in(w.carry, i) : lane_in(w.carry, i)) : kSubtract;
        U partial = x + y, sum = partial + (in ? 1 : 0);
        bool out = partial < x || sum < partial;
        d[i] = sum;
        if (kCarryOut)
            w.carry = (w.carry & ~(1u << i)) | static_cast<u32>(out != kSubtract) << i;  // a borrow sets the flag
    });
    if (kCarryOut) w.carry_defined = (w.carry_defined & ~w.active) | (known & w.active);
    w.define(op.dst, known);
}

template <bool kSubtract, bool kCarryIn, bool kCarryOut>
void emit_carry(Form& f, int bytes) {
    emit_binary(
        f, bytes == 8 ? op_carry<s64, kSubtract, kCarryIn, kCarryOut> : op_carry<s32, kSubtract, kCarryIn, kCarryOut>,
        bytes);
}

template <bool kSubtract>
void decode_carrying(Form& f) {
    bool out = f.take("cc");
    int bytes = type_size(f.take_type());
    out ? emit_carry<kSubtract, true, true>(f, bytes) : emit_carry<kSubtract, true, false>(f, bytes);
}

template <bool kSubtract, class Plain, class Saturating>
void decode_integer_sum(Form& f) {
    if (f.take("cc")) return emit_carry<kSubtract, false, true>(f, type_size(f.take_type()));
    if (f.take("sat")) {
        if (f.take_type() != "s32") f.unsupported(".sat needs .s32");
        return emit_binary(f, op_binary<Saturating, s32>, 4);
    }
    decode_binary<Plain>(f);
}

// add, sub, min, max, neg and abs exist for integers, floats and halves: the type decides.
bool is_integer(const Form& f) {
    for (const char* type : {"f32", "f64", "f16", "f16x2", "bf16", "bf16x2"})
        if (f.inst.has(type)) return false;
    return true;
}

template <class F>
void relu_wrap(Warp& w, const Op& op) {
    map2<s32, s32, s32>(w, op.dst, op.a, op.b, [](s32 a, s32 b) {
        s32 r = F{}(a, b);
        return r < 0 ? 0 : r;
    });
}

template <class F>
void decode_extremum(Form& f, FamilyFn real) {
    if (!is_integer(f)) return real(f);
    if (f.take("relu")) {
        if (f.take_type() != "s32") f.unsupported(".relu needs .s32");
        return emit_binary(f, relu_wrap<F>, 4);
    }
    decode_binary<F>(f);
}

template <class F>
void decode_sign(Form& f, FamilyFn real) {
    if (!is_integer(f)) return real(f);
    std::string type = f.take_type();
    Ref a = f.decoder.source(f.at(1), type);
    Op& op = f.decoder.emit(type == "s16"   ? op_unary<F, s16>
                            : type == "s32" ? op_unary<F, s32>
                                            : op_unary<F, s64>,
                            OpClass::Integer);
    op.a = a;
    op.dst = f.decoder.dest(f.at(0), type_size(type));
}

void decode_add(Form& f) { is_integer(f) ? decode_integer_sum<false, Add, AddSat>(f) : decode_float_add(f); }
void decode_sub(Form& f) { is_integer(f) ? decode_integer_sum<true, Sub, SubSat>(f) : decode_float_sub(f); }
void decode_min(Form& f) { decode_extremum<Min>(f, decode_float_min); }
void decode_max(Form& f) { decode_extremum<Max>(f, decode_float_max); }
void decode_abs(Form& f) { decode_sign<Abs>(f, decode_float_abs); }
void decode_neg(Form& f) { decode_sign<Neg>(f, decode_float_neg); }
void decode_div(Form& f) { is_integer(f) ? decode_binary<Div>(f) : decode_float_div(f); }
void decode_rem(Form& f) { decode_binary<Rem>(f); }

void decode_sad(Form& f) {
    std::string type = f.take_type();
    emit_ternary(f, by_integer_type(f, type, [](auto t) -> Handler { return op_sad<decltype(t)>; }), type_size(type));
}

}  // namespace

void emit_binary(Form& f, Handler fn, int bytes, OpClass cls) {
    Ref a = f.decoder.source(f.at(1), bytes), b = f.decoder.source(f.at(2), bytes);
    Op& op = f.decoder.emit(fn, cls);
    op.a = a;
    op.b = b;
    op.dst = f.decoder.dest(f.at(0), bytes);
}

void emit_ternary(Form& f, Handler fn, int bytes, OpClass cls) {
    Ref a = f.decoder.source(f.at(1), bytes), b = f.decoder.source(f.at(2), bytes),
        c = f.decoder.source(f.at(3), bytes);
    Op& op = f.decoder.emit(fn, cls);
    op.a = a;
    op.b = b;
    op.c = c;
    op.dst = f.decoder.dest(f.at(0), bytes);
}

void add_integer_families(FamilyTable& t) {
    t["add"] = decode_add;
    t["sub"] = decode_sub;
    t["addc"] = decode_carrying<false>;
    t["subc"] = decode_carrying<true>;
    t["min"] = decode_min;
    t["max"] = decode_max;
    t["abs"] = decode_abs;
    t["neg"] = decode_neg;
    t["div"] = decode_div;
    t["rem"] = decode_rem;
    t["sad"] = decode_sad;
}

}  // namespace ptxsim
