// Logic and shifts (PTX ISA 9.7.8): and, or, xor, not, cnot, lop3, shf, shl, shr; selp and slct (9.7.6); prmt
// (9.7.9.7).
#include "control.h"
#include "fp.h"
#include "integer.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

struct And {
    template <class T> T operator()(T a, T b) const { return a & b; }
};
struct Or {
    template <class T> T operator()(T a, T b) const { return a | b; }
};
struct Xor {
    template <class T> T operator()(T a, T b) const { return a ^ b; }
};

template <class F, class T>
void op_logic(Warp& w, const Op& op) {
    map2<T, T, T>(w, op.dst, op.a, op.b, F{});
}

// A predicate is known already if one side decides it.
template <class F>
void op_logic_predicate(Warp& w, const Op& op) {
    u32 a = w.predicates[op.p], b = w.predicates[op.q], da = w.predicates_defined[op.p],
        db = w.predicates_defined[op.q];
    u32 known = da & db;
    if (std::is_same_v<F, And>) known |= (da & ~a) | (db & ~b);
    if (std::is_same_v<F, Or>) known |= (da & a) | (db & b);
    w.set_predicate(op.to_p, F{}(a, b), known);
}

void op_not_pred(Warp& w, const Op& op) { w.set_predicate(op.to_p, ~w.predicates[op.p], w.predicates_defined[op.p]); }

template <class F>
void decode_logic(Form& f) {
    Decoder& d = f.decoder;
    std::string type = f.take_type();
    if (type != "pred")
        return emit_binary(f, type_size(type) == 8 ? op_logic<F, u64> : op_logic<F, u32>, type_size(type));
    int p = d.predicate(f.at(1)), q = d.predicate(f.at(2));
    Op& op = d.emit(op_logic_predicate<F>, OpClass::Integer);
    op.p = p;
    op.q = q;
    op.to_p = d.predicate_dest(f.at(0));
}

// 9.7.8.4 not, 9.7.8.5 cnot: "d = (a==0) ? 1 : 0".
template <class T> void op_not(Warp& w, const Op& op) {
    map1<T, T>(w, op.dst, op.a, [](T a) { return static_cast<T>(~a); });
}
template <class T> void op_cnot(Warp& w, const Op& op) {
    map1<T, T>(w, op.dst, op.a, [](T a) { return static_cast<T>(a == 0); });
}

void emit_unary(Form& f, Handler fn, int bytes) {
    Ref a = f.decoder.source(f.at(1), bytes);
    Op& op = f.decoder.emit(fn, OpClass::Integer);
    op.a = a;
    op.dst = f.decoder.dest(f.at(0), bytes);
}

void decode_not(Form& f) {
    std::string type = f.take_type();
    int bytes = type_size(type);
    if (type != "pred") return emit_unary(f, bytes == 8 ? op_not<u64> : bytes == 2 ? op_not<u16> : op_not<u32>, bytes);
    int p = f.decoder.predicate(f.at(1));
    Op& op = f.decoder.emit(op_not_pred, OpClass::Integer);
    op.p = p;
    op.to_p = f.decoder.predicate_dest(f.at(0));
}

void decode_cnot(Form& f) {
    int bytes = type_size(f.take_type());
    emit_unary(f, bytes == 8 ? op_cnot<u64> : bytes == 2 ? op_cnot<u16> : op_cnot<u32>, bytes);
}

// 9.7.8.6 lop3: bit i of the result is bit (a<<2 | b<<1 | c) of immLut.
void op_lop3(Warp& w, const Op& op) {
    u32 lut = op.logic.table, m[8];
    for (u32 k = 0; k < 8; ++k) m[k] = 0u - ((lut >> k) & 1u);
    map3<u32, u32, u32, u32>(w, op.dst, op.a, op.b, op.c, [&](u32 a, u32 b, u32 c) {
        u32 low = (~b & ((~c & m[0]) | (c & m[1]))) | (b & ((~c & m[2]) | (c & m[3])));
        u32 high = (~b & ((~c & m[4]) | (c & m[5]))) | (b & ((~c & m[6]) | (c & m[7])));
        return (~a & low) | (a & high);
    });
}

// lop3.BoolOp d|p: "p = (d != 0) BoolOp q".
void op_lop3_predicate(Warp& w, const Op& op) {
    op_lop3(w, op);
    u32 nonzero = test2<u32, u32>(w, op.dst, op.dst, [](u32 x, u32) { return x != 0; });
    u32 p = w.predicates[op.p];
    w.set_predicate(op.to_p, op.logic.conjunction ? nonzero & p : nonzero | p,
                    w.defined(op.dst) & w.predicates_defined[op.p]);
}

void decode_lop3(Form& f) {
    Decoder& d = f.decoder;
    std::string boolean = f.take_any({"or", "and"});
    f.take_type();
    bool pair = f.at(0).kind == Operand::kPair;
    Ref a = d.source(f.at(1), 4), b = d.source(f.at(2), 4), c = d.source(f.at(3), 4);
    int p = boolean.empty() ? -1 : d.predicate(f.at(5));
    if (f.at(4).kind != Operand::kImm) f.unsupported("immLut must be an immediate");
    Op& op = d.emit(boolean.empty() ? op_lop3 : op_lop3_predicate, OpClass::Integer);
    op.a = a;
    op.b = b;
    op.c = c;
    op.logic = {static_cast<u8>(f.at(4).bits), boolean == "and"};
    op.dst = d.dest(pair ? f.at(0).items[0] : f.at(0), 4);
    if (boolean.empty()) return;
    op.to_p = pair ? d.predicate_dest(f.at(0).items[1]) : 0;
    op.p = p;
}

// 9.7.8.8-9 shl, shr: "Shift amounts greater than the register width N are clamped to N".
template <class T>
void op_shl(Warp& w, const Op& op) {
    map2<T, T, u32>(w, op.dst, op.a, op.b,
                    [](T a, u32 n) { return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << n); });
}
template <class T>
void op_shr(Warp& w, const Op& op) {
    map2<T, T, u32>(w, op.dst, op.a, op.b, [](T a, u32 n) {
        constexpr u32 kTop = 8 * sizeof(T) - 1;
        if (std::is_signed_v<T>) return static_cast<T>(a >> (n > kTop ? kTop : n));
        return n > kTop ? T(0) : static_cast<T>(a >> n);
    });
}

void emit_shift(Form& f, Handler fn, int bytes) {
    Ref a = f.decoder.source(f.at(1), bytes), b = f.decoder.source(f.at(2), 4);
    Op& op = f.decoder.emit(fn, OpClass::Integer);
    op.a = a;
    op.b = b;
    op.dst = f.decoder.dest(f.at(0), bytes);
}

void decode_shl(Form& f) {
    int bytes = type_size(f.take_type());
    emit_shift(f, bytes == 8 ? op_shl<u64> : bytes == 2 ? op_shl<u16> : op_shl<u32>, bytes);
}
void decode_shr(Form& f) {
    std::string type = f.take_type();
    emit_shift(f, by_integer_type(f, type, [](auto t) -> Handler { return op_shr<decltype(t)>; }), type_size(type));
}

// 9.7.8.7 shf: a funnel of [b, a]; .l gives the high word after a left shift, .r the low word after a right shift.
template <bool kLeft, bool kClamp>
void op_shf(Warp& w, const Op& op) {
    map3<u32, u32, u32, u32>(w, op.dst, op.a, op.b, op.c, [](u32 a, u32 b, u32 c) {
        u32 n = kClamp ? (c > 32 ? 32 : c) : c & 31;
        u64 both = static_cast<u64>(b) << 32 | a;
        return kLeft ? static_cast<u32>((both << n) >> 32) : static_cast<u32>(both >> n);
    });
}

void decode_shf(Form& f) {
    bool left = f.take_any({"l", "r"}) == "l", clamp = f.take_any({"clamp", "wrap"}) == "clamp";
    f.take_type();
    emit_ternary(f,
                 left ? (clamp ? op_shf<true, true> : op_shf<true, false>)
                      : (clamp ? op_shf<false, true> : op_shf<false, false>),
                 4);
}

// 9.7.9.7 prmt: each selector nibble picks a byte of {b, a}; its msb replicates that byte's sign.
u32 permute(u32 a, u32 b, u32 selector) {
    u64 both = static_cast<u64>(b) << 32 | a;
    u32 out = 0;
    for (int k = 0; k < 4; ++k) {
        u32 s = selector >> (4 * k) & 15;
        u32 byte = static_cast<u32>(both >> (8 * (s & 7))) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << (8 * k);
    }
    return out;
}

u32 permute_selector(const std::string& mode, u32 c) {
    static const u32 f4e[] = {0x3210, 0x4321, 0x5432, 0x6543}, b4e[] = {0x5670, 0x6701, 0x7012, 0x0123},
                     rc8[] = {0x0000, 0x1111, 0x2222, 0x3333}, ecl[] = {0x3210, 0x3211, 0x3222, 0x3333},
                     ecr[] = {0x0000, 0x1110, 0x2210, 0x3210}, rc16[] = {0x1010, 0x3232, 0x1010, 0x3232};
    c &= 3;
    if (mode == "f4e") return f4e[c];
    if (mode == "b4e") return b4e[c];
    if (mode == "rc8") return rc8[c];
    if (mode == "ecl") return ecl[c];
    if (mode == "ecr") return ecr[c];
    return rc16[c];
}

void op_prmt(Warp& w, const Op& op) { map3<u32, u32, u32, u32>(w, op.dst, op.a, op.b, op.c, permute); }
void op_prmt_mode(Warp& w, const Op& op) {
    static const char* modes[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    const std::string mode = modes[op.mode];
    map3<u32, u32, u32, u32>(w, op.dst, op.a, op.b, op.c,
                             [&](u32 a, u32 b, u32 c) { return permute(a, b, permute_selector(mode, c)); });
}

void decode_prmt(Form& f) {
    f.take_type();
    static const char* modes[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    for (u8 m = 0; m < 6; ++m) {
        if (!f.take(modes[m])) continue;
        emit_ternary(f, op_prmt_mode, 4);
        f.decoder.program().code.back().mode = m;
        return;
    }
    emit_ternary(f, op_prmt, 4);
}

// 9.7.6.3 selp: "d = (c == 1) ? a : b"; the value not chosen need not be defined.
template <class T>
void op_selp(Warp& w, const Op& op) {
    const T *a = w.cells<T>(op.a), *b = w.cells<T>(op.b);
    T* d = w.cells<T>(op.dst);
    u32 p = w.predicates[op.p];
    u32 known = w.predicates_defined[op.p] & ((p & w.defined(op.a)) | (~p & w.defined(op.b)));
    u32 flags[kLanes];
    unpack_mask(p, flags);
    if (w.active == kFull) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) d[i] = flags[i] ? a[i] : b[i];
    } else {
        T t[kLanes];
        for (int i = 0; i < kLanes; ++i) t[i] = flags[i] ? a[i] : b[i];
        blend(d, t, w.active);
    }
    w.define(op.dst, known);
}

void decode_selp(Form& f) {
    std::string type = f.take_type();
    int bytes = type_size(type), p = f.decoder.predicate(f.at(3));
    Ref a = f.decoder.source(f.at(1), type), b = f.decoder.source(f.at(2), type);
    Op& op = f.decoder.emit(bytes == 8 ? op_selp<u64> : op_selp<u32>, OpClass::Compare);
    op.a = a;
    op.b = b;
    op.p = p;
    op.dst = f.decoder.dest(f.at(0), bytes);
}

// 9.7.6.4 slct: "d = (c >= 0) ? a : b"; a NaN selects b, and under .ftz a subnormal counts as zero.
template <class T, class C, bool kFlush = false>
void op_slct(Warp& w, const Op& op) {
    map3<T, T, T, C>(w, op.dst, op.a, op.b, op.c, [](T a, T b, C c) {
        if constexpr (kFlush) c = flush(c);
        return c >= 0 ? a : b;
    });
}

template <class T>
Handler slct_handler(bool real, bool ftz) {
    return !real ? op_slct<T, s32> : ftz ? op_slct<T, float, true> : op_slct<T, float>;
}

void decode_slct(Form& f) {
    bool ftz = f.take("ftz");
    std::string type = f.take_first_type(), by = f.take_first_type();
    int bytes = type_size(type);
    Ref a = f.decoder.source(f.at(1), type), b = f.decoder.source(f.at(2), type), c = f.decoder.source(f.at(3), by);
    Op& op = f.decoder.emit(bytes == 8 ? slct_handler<u64>(by == "f32", ftz) : slct_handler<u32>(by == "f32", ftz),
                            OpClass::Compare);
    op.a = a;
    op.b = b;
    op.c = c;
    op.dst = f.decoder.dest(f.at(0), bytes);
}

}  // namespace

void add_logic_families(FamilyTable& t) {
    t["and"] = decode_logic<And>;
    t["or"] = decode_logic<Or>;
    t["xor"] = decode_logic<Xor>;
    t["not"] = decode_not;
    t["cnot"] = decode_cnot;
    t["lop3"] = decode_lop3;
    t["shl"] = decode_shl;
    t["shr"] = decode_shr;
    t["shf"] = decode_shf;
    t["prmt"] = decode_prmt;
    t["selp"] = decode_selp;
    t["slct"] = decode_slct;
}

}  // namespace ptxsim
