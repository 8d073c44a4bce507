// wmma.mma (PTX ISA 9.7.14.4.5): fragments are gathered into dense matrices, multiplied and dealt out again, with the
// arithmetic of mma.sync (mma.cpp).
#include "wmma.h"

#include <algorithm>

#include "control.h"
#include "counters.h"
#include "matrix_warp.h"

namespace ptxsim {

namespace {

constexpr int kMaxExtent = 32;

struct WmmaShape {
    WmmaMatrix d, a, b, c;
    bool saturate;
};

template <class T>
struct Dense {
    T at[kMaxExtent][kMaxExtent];
    u64 bits[kMaxExtent][kMaxExtent];
    u32 present[kMaxExtent] = {}, known[kMaxExtent] = {};  // a bit a column
};

// Elements that have copies must agree in them: a program that changed them one by one cannot know which one counts.
[[noreturn]] void fail_copies(Warp& w, int lane, Position p) {
    w.fail(ErrorKind::Undefined,
           "Lanes hold different values of the wmma fragment's element at row " + std::to_string(p.row) + ", column " +
               std::to_string(p.col) +
               ": which lane holds which element is unspecified, so only operations on all elements alike are defined.",
           lane);
}

template <class T>
T value_of(u64 bits, int within, Input type) {
    if constexpr (std::is_same_v<T, double>) return bit_cast<double>(bits);
    else return element<T>(static_cast<u32>(bits), within, type);
}

template <class T>
void gather(Warp& w, const Ref* refs, const WmmaMatrix& matrix, Dense<T>& out) {
    int width = 8 * element_bytes(matrix.type);
    for_wmma_elements(matrix, w.cta->launch->seed, [&](int reg, int lane, int within, Position p) {
        u64 cell = matrix.type == kF64 ? w.cells<u64>(refs[reg])[lane] : w.cells<u32>(refs[reg])[lane];
        u64 bits = width == 64 ? cell : cell >> (width * within) & ((1ull << width) - 1);
        u32 column = 1u << p.col;
        bool known = lane_in(w.defined(refs[reg]), lane);
        if (out.present[p.row] & column) {
            bool both = known && (out.known[p.row] & column);
            if (both && bits != out.bits[p.row][p.col]) fail_copies(w, lane, p);
            if (!known) out.known[p.row] &= ~column;
            return;
        }
        out.present[p.row] |= column;
        if (known) out.known[p.row] |= column;
        out.bits[p.row][p.col] = bits;
        out.at[p.row][p.col] = value_of<T>(cell, within, matrix.type);
    });
}

float multiply_add(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
double multiply_add(double x, double y, double z) { return __builtin_fma(x, y, z); }
s64 multiply_add(s64 x, s64 y, s64 z) { return x * y + z; }

// d = a × b + c, from the lowest k up. An element is known if its row of a, its column of b and its element of c are.
template <class T>
void multiply(const WmmaShape& s, const Dense<T>& a, const Dense<T>& b, const Dense<T>& c, Dense<T>& d) {
    u32 depth = kFull >> (32 - s.a.k), good_columns = kFull;
    for (int k = 0; k < s.a.k; ++k) good_columns &= b.known[k];
    for (int i = 0; i < s.a.m; ++i) {
        bool row = (a.known[i] & depth) == depth;
        d.known[i] = row ? good_columns & c.known[i] : 0;
        for (int j = 0; j < s.a.n; ++j) {
            T sum = c.at[i][j];
            for (int k = 0; k < s.a.k; ++k) sum = multiply_add(a.at[i][k], b.at[k][j], sum);
            d.at[i][j] = sum;
        }
    }
}

u64 bits_of(float x, const WmmaShape& s) { return s.d.type == kF16 ? half_from_float(x) : bit_cast<u32>(canonical(x)); }
u64 bits_of(double x, const WmmaShape&) { return bit_cast<u64>(x); }
u64 bits_of(s64 x, const WmmaShape& s) {
    if (s.saturate) x = std::clamp<s64>(x, INT32_MIN, INT32_MAX);
    return static_cast<u32>(x);
}

template <class T>
void scatter(Warp& w, const Ref* refs, const WmmaShape& s, const Dense<T>& from) {
    for (int reg = 0; reg < s.d.registers; ++reg) {
        w.defined(refs[reg]) = kFull;
        std::memset(w.cells<u32>(refs[reg]), 0, kLanes * (s.d.type == kF64 ? 8 : 4));
    }
    for_wmma_elements(s.d, w.cta->launch->seed, [&](int reg, int lane, int within, Position p) {
        u64 bits = bits_of(from.at[p.row][p.col], s);
        if (s.d.type == kF64) w.cells<u64>(refs[reg])[lane] = bits;
        else w.cells<u32>(refs[reg])[lane] |= static_cast<u32>(bits) << (8 * element_bytes(s.d.type) * within);
        if (!lane_in(from.known[p.row], p.col)) w.defined(refs[reg]) &= ~(1u << lane);
    });
}

template <class T>
void op_wmma(Warp& w, const Op& op) {
    const WmmaShape& s = wmma_payload<WmmaShape>(op);
    if (!enter_whole_warp(w)) return;
    w.cta->counters->mma_flop += 2ull * s.a.m * s.a.n * s.a.k;
    Dense<T> a, b, c, d;
    const Ref *a_refs = op.list + s.d.registers, *b_refs = a_refs + s.a.registers, *c_refs = b_refs + s.b.registers;
    gather(w, a_refs, s.a, a);
    gather(w, b_refs, s.b, b);
    gather(w, c_refs, s.c, c);
    multiply(s, a, b, c, d);
    scatter(w, op.list, s, d);
}

// f16: .dtype.ctype; all others: .dtype.atype.btype.ctype.
struct Types { std::string d, a, b, c; };

Types take_types(Form& f) {
    std::string first = f.take_first_type(), second = f.take_first_type();
    bool halves = true;
    for (const std::string& mod : f.left) halves &= mod == "satfinite" || mod == "rn";
    if (halves) return {first, "f16", "f16", second};
    std::string third = f.take_first_type();
    return {first, second, third, f.take_first_type()};
}

void check_types(Form& f, const Types& t, u8 k) {
    bool halves = t.a == "f16", bytes = t.a == "s8" || t.a == "u8";
    bool fits = halves   ? (t.d == "f16" || t.d == "f32") && (t.c == "f16" || t.c == "f32")
                : bytes  ? t.d == "s32" && t.c == "s32"
                : k == 4 ? t.a == "f64" && t.d == "f64" && t.c == "f64"
                : k == 8 ? t.a == "tf32" && t.d == "f32" && t.c == "f32"
                         : t.a == "bf16" && t.d == "f32" && t.c == "f32";
    if (!fits || t.a != t.b || ((halves || bytes) && k != 16)) f.unsupported("types of the matrices");
}

void decode_wmma_mma(Form& f) {
    Decoder& d = f.decoder;
    bool a_column = take_wmma_layout(f), b_column = take_wmma_layout(f);
    WmmaMatrix shape = take_wmma_shape(f);
    Types types = take_types(f);
    check_types(f, types, shape.k);
    f.take("rn");
    auto count = [&](size_t i) { return f.at(i).items.size(); };
    WmmaShape s{wmma_matrix(f, shape, MatrixUse::Accumulator, types.d, false, count(0)),
                wmma_matrix(f, shape, MatrixUse::A, types.a, a_column, count(1)),
                wmma_matrix(f, shape, MatrixUse::B, types.b, b_column, count(2)),
                wmma_matrix(f, shape, MatrixUse::Accumulator, types.c, false, count(3)), f.take("satfinite")};
    int bytes = types.d == "f64" ? 8 : 4;
    std::vector<u32> refs;
    for (const Operand& x : f.at(0).items) refs.push_back(d.dest(x, bytes));
    for (size_t i = 1; i < 4; ++i)
        for (const Operand& x : f.at(i).items) refs.push_back(d.source(x, bytes));
    if (s.saturate && types.d != "s32") f.unsupported(".satfinite of floating-point matrices");
    Op& op = d.emit(types.d == "f64"   ? op_wmma<double>
                    : types.d == "s32" ? op_wmma<s64>
                                       : op_wmma<float>,
                    OpClass::Mma);
    op.list = d.list(refs);
    op.form = wmma_payload(d, s);
}

void decode_wmma(Form& f) {
    if (!f.take("sync") || !f.take("aligned")) f.unsupported();
    if (f.take("mma")) return decode_wmma_mma(f);
    if (f.take("load")) return decode_wmma_load(f);
    if (f.take("store")) return decode_wmma_store(f);
    f.unsupported();
}

}  // namespace

WmmaMatrix take_wmma_shape(Form& f) {
    struct Named {
        const char* name;
        u8 m, n, k;
    };
    static const Named shapes[] = {{"m16n16k16", 16, 16, 16},
                                   {"m32n8k16", 32, 8, 16},
                                   {"m8n32k16", 8, 32, 16},
                                   {"m16n16k8", 16, 16, 8},
                                   {"m8n8k4", 8, 8, 4}};
    for (const Named& s : shapes)
        if (f.take(s.name)) return WmmaMatrix{MatrixUse::A, s.m, s.n, s.k, kF16, false, 0};
    f.unsupported("shape of the matrices");
}

WmmaMatrix wmma_matrix(Form& f, WmmaMatrix m, MatrixUse use, const std::string& type, bool column_major,
                       size_t registers) {
    m.use = use;
    m.column_major = column_major;
    m.registers = static_cast<u8>(registers);
    if (!parse_input(type, m.type)) f.unsupported("element type ." + type);
    bool copies = use != MatrixUse::Accumulator && m.type == kF16;  // 16 halves a lane, whatever the shape
    int elements = copies ? 16 : m.size() / kLanes;
    if (static_cast<int>(registers) * m.per_register() != elements) f.unsupported("number of registers");
    return m;
}

bool take_wmma_layout(Form& f) {
    auto found =
        std::find_if(f.left.begin(), f.left.end(), [](const std::string& mod) { return mod == "row" || mod == "col"; });
    if (found == f.left.end()) f.unsupported("it has no layout");
    bool column = *found == "col";
    f.left.erase(found);
    return column;
}

void add_wmma_families(FamilyTable& t) { t["wmma"] = decode_wmma; }

}  // namespace ptxsim
