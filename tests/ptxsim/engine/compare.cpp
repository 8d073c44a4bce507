// Comparisons (PTX ISA 9.7.6 setp, set; 9.7.7 for halves), testp (9.7.3.1) and copysign (9.7.3.2).
#include <functional>

#include "control.h"
#include "fp.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

// How two values relate; a comparison is the set of relations it accepts.
enum Relation : u8 { kLess = 1, kEqual = 2, kGreater = 4, kUnordered = 8 };

u8 relations_of(const std::string& cmp) {
    // clang-format off
    static const std::map<std::string, u8> table{
        {"eq", kEqual}, {"ne", kLess | kGreater}, {"lt", kLess}, {"le", kLess | kEqual},
        {"gt", kGreater}, {"ge", kGreater | kEqual},
        {"lo", kLess}, {"ls", kLess | kEqual}, {"hi", kGreater}, {"hs", kGreater | kEqual},
        // "equ, neu, ltu, ...: true if either operand is NaN"
        {"equ", kEqual | kUnordered}, {"neu", kLess | kGreater | kUnordered}, {"ltu", kLess | kUnordered},
        {"leu", kLess | kEqual | kUnordered}, {"gtu", kGreater | kUnordered}, {"geu", kGreater | kEqual | kUnordered},
        {"num", kLess | kEqual | kGreater}, {"nan", kUnordered}};
    // clang-format on
    auto it = table.find(cmp);
    return it == table.end() ? 0 : it->second;
}

template <class T>
inline u8 relate(T a, T b) {
    return a < b ? kLess : a == b ? kEqual : a > b ? kGreater : kUnordered;
}

// The six ordinary comparisons have loops of their own, which vectorise.
template <class T>
u32 compare_lanes(Warp& w, const Op& op, Ref ra, Ref rb) {
    switch (op.compare.accept) {
        case kEqual: return test2<T, T>(w, ra, rb, [](T a, T b) { return a == b; });
        case kLess: return test2<T, T>(w, ra, rb, [](T a, T b) { return a < b; });
        case kLess | kEqual: return test2<T, T>(w, ra, rb, [](T a, T b) { return a <= b; });
        case kGreater: return test2<T, T>(w, ra, rb, [](T a, T b) { return a > b; });
        case kGreater | kEqual: return test2<T, T>(w, ra, rb, [](T a, T b) { return a >= b; });
        default: return test2<T, T>(w, ra, rb, [&](T a, T b) { return (relate(a, b) & op.compare.accept) != 0; });
    }
}

// With .ftz subnormals compare as zeros.
u32 compare_flushed(Warp& w, const Op& op, Ref ra, Ref rb) {
    u8 accept = op.compare.accept;
    return test2<float, float>(w, ra, rb,
                               [accept](float a, float b) { return (relate(flush(a), flush(b)) & accept) != 0; });
}

template <class H>
u32 compare_halves(Warp& w, const Op& op, int shift) {
    u8 accept = op.compare.accept;
    bool ftz = op.compare.ftz;
    return test2<u32, u32>(w, op.a, op.b, [=](u32 a, u32 b) {
        float x = to_float(H{static_cast<u16>(a >> shift)}), y = to_float(H{static_cast<u16>(b >> shift)});
        if (ftz) x = std::fabs(x) < 6.103515625e-05f ? 0.0f : x, y = std::fabs(y) < 6.103515625e-05f ? 0.0f : y;
        return (relate(x, y) & accept) != 0;
    });
}

// "p = BoolOp(t, c); q = BoolOp(!t, c)" (setp); boolean: 0 none, 1 and, 2 or, 3 xor.
enum Boolean : u8 { kPlain, kAnd, kOr, kXor };
u32 combine(u32 t, u32 c, u8 boolean) {
    return boolean == kAnd ? t & c : boolean == kOr ? t | c : boolean == kXor ? t ^ c : t;
}

// Lanes whose result is defined: both sides are, or one of them decides it (false and x, true or x).
u32 known_result(Warp& w, const Op& op, u32 t) {
    u32 known = w.defined(op.a) & w.defined(op.b);
    if (op.compare.boolean == kPlain) return known;
    u32 c = w.predicates[op.p], known_c = w.predicates_defined[op.p];
    if (op.compare.boolean == kAnd) return (known & known_c) | (known & ~t) | (known_c & ~c);
    if (op.compare.boolean == kOr) return (known & known_c) | (known & t) | (known_c & c);
    return known & known_c;
}

void finish_setp(Warp& w, const Op& op, u32 t, u32 u) {
    u32 c = op.compare.boolean == kPlain ? 0 : w.predicates[op.p], known = known_result(w, op, t);
    u32 known_q = known_result(w, op, u);
    w.set_predicate(op.to_p, combine(t, c, op.compare.boolean), known);
    if (op.to_q >= 0) w.set_predicate(op.to_q, combine(u, c, op.compare.boolean), known_q);
}
void finish_setp(Warp& w, const Op& op, u32 t) { finish_setp(w, op, t, ~t); }

template <class T>
void op_setp(Warp& w, const Op& op) {
    finish_setp(w, op, compare_lanes<T>(w, op, op.a, op.b));
}
void op_setp_ftz(Warp& w, const Op& op) { finish_setp(w, op, compare_flushed(w, op, op.a, op.b)); }
template <class H>
void op_setp_half(Warp& w, const Op& op) {
    finish_setp(w, op, compare_halves<H>(w, op, 0));
}

// setp.f16x2 p|q: the low halves decide p, the high halves q.
template <class H>
void op_setp_pair(Warp& w, const Op& op) {
    finish_setp(w, op, compare_halves<H>(w, op, 0), compare_halves<H>(w, op, 16));
}

// 9.7.6.1 set: the result is all ones (integers) or 1.0 (floating point) where true.
void write_set(Warp& w, const Op& op, u32 low, u32 high) {
    u32 c = op.compare.boolean == kPlain ? 0 : w.predicates[op.p];
    u32 known = known_result(w, op, low) & known_result(w, op, high);
    low = combine(low, c, op.compare.boolean);
    high = combine(high, c, op.compare.boolean);
    u32 truth = static_cast<u32>(op.compare.truth), truth_high = static_cast<u32>(op.compare.truth >> 32);
    u32* d = w.cells<u32>(op.dst);
    for_lanes(w.active, [&](int i) { d[i] = (lane_in(low, i) ? truth : 0) | (lane_in(high, i) ? truth_high : 0); });
    w.define(op.dst, known);
}
template <class T>
void op_set(Warp& w, const Op& op) {
    write_set(w, op, compare_lanes<T>(w, op, op.a, op.b), 0);
}
void op_set_ftz(Warp& w, const Op& op) { write_set(w, op, compare_flushed(w, op, op.a, op.b), 0); }
template <class H>
void op_set_half(Warp& w, const Op& op) {
    write_set(w, op, compare_halves<H>(w, op, 0), 0);
}
template <class H>
void op_set_pair(Warp& w, const Op& op) {
    write_set(w, op, compare_halves<H>(w, op, 0), compare_halves<H>(w, op, 16));
}

struct Handlers { Handler setp, set; };

Handlers handlers_of(Form& f, const std::string& type, bool ftz) {
    if (type == "f32") return ftz ? Handlers{op_setp_ftz, op_set_ftz} : Handlers{op_setp<float>, op_set<float>};
    if (type == "f64") return {op_setp<double>, op_set<double>};
    if (type == "f16") return {op_setp_half<Half>, op_set_half<Half>};
    if (type == "bf16") return {op_setp_half<Bfloat>, op_set_half<Bfloat>};
    if (type == "f16x2") return {op_setp_pair<Half>, op_set_pair<Half>};
    if (type == "bf16x2") return {op_setp_pair<Bfloat>, op_set_pair<Bfloat>};
    if (type == "s16") return {op_setp<s16>, op_set<s16>};
    if (type == "u16" || type == "b16") return {op_setp<u16>, op_set<u16>};
    if (type == "s32") return {op_setp<s32>, op_set<s32>};
    if (type == "u32" || type == "b32") return {op_setp<u32>, op_set<u32>};
    if (type == "s64") return {op_setp<s64>, op_set<s64>};
    if (type == "u64" || type == "b64") return {op_setp<u64>, op_set<u64>};
    f.unsupported("type ." + type);
}

struct Comparison {
    u8 accept, boolean;
    bool ftz;
};

Comparison take_comparison(Form& f) {
    Comparison c{0, kPlain, f.take("ftz")};
    if (f.left.empty()) f.unsupported();
    c.accept = relations_of(f.left[0]);
    if (!c.accept) f.unsupported("comparison ." + f.left[0]);
    f.left.erase(f.left.begin());
    std::string boolean = f.take_any({"and", "or", "xor"});
    c.boolean = boolean == "and" ? kAnd : boolean == "or" ? kOr : boolean == "xor" ? kXor : kPlain;
    return c;
}

void fill(Op& op, const Comparison& c, Ref a, Ref b, int predicate, u64 truth) {
    op.a = a;
    op.b = b;
    op.p = predicate;
    op.compare = {c.accept, c.boolean, c.ftz, truth};
}

void decode_setp(Form& f) {
    Decoder& d = f.decoder;
    Comparison c = take_comparison(f);
    std::string type = f.take_type();
    Ref a = d.source(f.at(1), type), b = d.source(f.at(2), type);
    int predicate = c.boolean == kPlain ? -1 : d.predicate(f.at(3));
    bool pair = f.at(0).kind == Operand::kPair;
    Op& op = d.emit(handlers_of(f, type, c.ftz).setp, OpClass::Compare);
    fill(op, c, a, b, predicate, 0);
    op.to_p = d.predicate_dest(pair ? f.at(0).items[0] : f.at(0));
    if (pair) op.to_q = d.predicate_dest(f.at(0).items[1]);
}

// The value of "true" for a destination type; packed halves have one per half.
s64 truth_of(Form& f, const std::string& type, bool packed) {
    if (type == "f32") return 0x3f800000;
    if (type == "f16") return 0x3c00;
    if (type == "bf16") return 0x3f80;
    if (type == "f16x2") return 0x3c00 | static_cast<s64>(0x3c000000) << 32;
    if (type == "bf16x2") return 0x3f80 | static_cast<s64>(0x3f800000) << 32;
    if (type == "u32" || type == "s32") return packed ? static_cast<s64>(0xffff0000ull << 32 | 0xffffu) : 0xffffffff;
    if (type == "u16" || type == "s16") return 0xffff;
    f.unsupported("destination type ." + type);
}

void decode_set(Form& f) {
    Decoder& d = f.decoder;
    Comparison c = take_comparison(f);
    std::string to = f.take_first_type(), type = f.take_first_type();
    bool packed = type == "f16x2" || type == "bf16x2";
    Ref a = d.source(f.at(1), type), b = d.source(f.at(2), type);
    int predicate = c.boolean == kPlain ? -1 : d.predicate(f.at(3));
    Op& op = d.emit(handlers_of(f, type, c.ftz).set, OpClass::Compare);
    fill(op, c, a, b, predicate, static_cast<u64>(truth_of(f, to, packed)));
    op.dst = d.dest(f.at(0), type_size(to));
}

// 9.7.3.1 testp: "Test floating-point property".
enum Property : u8 { kFinite, kInfinite, kNumber, kNotANumber, kNormal, kSubnormal };

template <class T>
void op_testp(Warp& w, const Op& op) {
    int expected[] = {0, FP_INFINITE, 0, FP_NAN, FP_NORMAL, FP_SUBNORMAL};
    u32 t = test2<T, T>(w, op.a, op.a, [&](T x, T) {
        int kind = std::fpclassify(x);
        if (op.mode == kFinite) return kind != FP_INFINITE && kind != FP_NAN;
        if (op.mode == kNumber) return kind != FP_NAN;
        return kind == expected[op.mode];
    });
    w.set_predicate(op.to_p, t, w.defined(op.a));
}

void decode_testp(Form& f) {
    static const char* names[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    u8 property = 0;
    while (property < 6 && !f.take(names[property])) ++property;
    if (property == 6) f.unsupported();
    std::string type = f.take_type();
    Ref a = f.decoder.source(f.at(1), type);
    Op& op = f.decoder.emit(type == "f64" ? op_testp<double> : op_testp<float>, OpClass::Compare);
    op.a = a;
    op.mode = property;
    op.to_p = f.decoder.predicate_dest(f.at(0));
}

// 9.7.3.2 copysign: "Copy sign bit of a into value of b".
template <class T, int kTop>
void op_copysign(Warp& w, const Op& op) {
    constexpr T kSign = T(1) << kTop;
    map2<T, T, T>(w, op.dst, op.a, op.b, [](T a, T b) { return static_cast<T>((a & kSign) | (b & ~kSign)); });
}

void decode_copysign(Form& f) {
    std::string type = f.take_type();
    Ref a = f.decoder.source(f.at(1), type), b = f.decoder.source(f.at(2), type);
    Op& op = f.decoder.emit(type == "f64" ? op_copysign<u64, 63> : op_copysign<u32, 31>, OpClass::Float);
    op.a = a;
    op.b = b;
    op.dst = f.decoder.dest(f.at(0), type_size(type));
}

}  // namespace

void add_compare_families(FamilyTable& t) {
    t["setp"] = decode_setp;
    t["set"] = decode_set;
    t["testp"] = decode_testp;
    t["copysign"] = decode_copysign;
}

}  // namespace ptxsim
