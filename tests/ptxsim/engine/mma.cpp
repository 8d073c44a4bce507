// mma.sync (PTX ISA 9.7.14.5): fragments are gathered into small dense matrices, multiplied, and scattered back.
// Products are exact in single precision; sums are taken in single precision from the lowest k up (docs/simulator.md).
#include "control.h"
#include "counters.h"
#include "lanes.h"
#include "matrix_warp.h"
#include "mma_half.h"
#include "mma_layout.h"
#include "mma_types.h"

namespace ptxsim {

namespace {

constexpr int kMaxK = 64;

struct MmaShape {
    u8 m, n, k;
    u8 a_regs, b_regs, c_regs;
    Input a_type, b_type;
    bool half_accumulator, saturate;
};

template <class T>
struct Matrices {
    alignas(32) T a[16][kMaxK];
    alignas(32) T b[kMaxK][8];
    alignas(32) T c[16][8];
};

// One register of 32 lanes, 16-bit pairs, into rows of a: the frequent case, so its loop knows the type.
template <class H, class T>
void gather_a_pair(const u32* r, T a[16][kMaxK], int row, int col) {
    for (int lane = 0; lane < kLanes; ++lane) {
        T* at = a[row + lane / 4] + col + lane % 4 * 2;
        at[0] = to_float(H{static_cast<u16>(r[lane])});
        at[1] = to_float(H{static_cast<u16>(r[lane] >> 16)});
    }
}

template <class H, class T>
void gather_b_pair(const u32* r, T b[kMaxK][8], int row) {
    for (int lane = 0; lane < kLanes; ++lane) {
        b[row + lane % 4 * 2][lane / 4] = to_float(H{static_cast<u16>(r[lane])});
        b[row + lane % 4 * 2 + 1][lane / 4] = to_float(H{static_cast<u16>(r[lane] >> 16)});
    }
}

template <class T>
void gather_a(Warp& w, const Op& op, const MmaShape& s, Matrices<T>& m) {
    int per = per_register(s.a_type);
    for (int reg = 0; reg < s.a_regs; ++reg) {
        const u32* r = w.cells<u32>(op.list[s.c_regs + reg]);
        Position first = a_position(0, reg * per, per, s.m);
        if (s.a_type == kBf16) gather_a_pair<Bfloat>(r, m.a, first.row, first.col);
        else if (s.a_type == kF16) gather_a_pair<Half>(r, m.a, first.row, first.col);
        else
            for (int lane = 0; lane < kLanes; ++lane)
                for (int e = 0; e < per; ++e) {
                    Position p = a_position(lane, reg * per + e, per, s.m);
                    m.a[p.row][p.col] = element<T>(r[lane], e, s.a_type);
                }
    }
}

template <class T>
void gather_b(Warp& w, const Op& op, const MmaShape& s, Matrices<T>& m) {
    int per = per_register(s.b_type);
    for (int reg = 0; reg < s.b_regs; ++reg) {
        const u32* r = w.cells<u32>(op.list[s.c_regs + s.a_regs + reg]);
        Position first = b_position(0, reg * per, per);
        if (s.b_type == kBf16) gather_b_pair<Bfloat>(r, m.b, first.row);
        else if (s.b_type == kF16) gather_b_pair<Half>(r, m.b, first.row);
        else
            for (int lane = 0; lane < kLanes; ++lane)
                for (int e = 0; e < per; ++e) {
                    Position p = b_position(lane, reg * per + e, per);
                    m.b[p.row][p.col] = element<T>(r[lane], e, s.b_type);
                }
    }
}

template <class T>
void multiply(Matrices<T>& m, int rows, int depth) {
    for (int i = 0; i < rows; ++i) {
        T acc[8];
        for (int j = 0; j < 8; ++j) acc[j] = m.c[i][j];
        for (int k = 0; k < depth; ++k) {
            T x = m.a[i][k];
            for (int j = 0; j < 8; ++j) {
                if constexpr (std::is_same_v<T, float>) acc[j] = __builtin_fmaf(x, m.b[k][j], acc[j]);
                else if constexpr (std::is_same_v<T, double>) acc[j] = __builtin_fma(x, m.b[k][j], acc[j]);
                else acc[j] = static_cast<T>(static_cast<u32>(acc[j]) + static_cast<u32>(x * m.b[k][j]));
            }
        }
        for (int j = 0; j < 8; ++j) m.c[i][j] = acc[j];
    }
}

// Operands follow the destinations in op.list: d (c_regs), a, b, c.
Ref c_operand(const Op& op, const MmaShape& s, int i) { return op.list[s.c_regs + s.a_regs + s.b_regs + i]; }

u32 known_inputs(Warp& w, const Op& op, const MmaShape& s) {
    u32 known = kFull;
    int sources = s.a_regs + s.b_regs + s.c_regs;
    for (int i = 0; i < sources; ++i) known &= w.defined(op.list[s.c_regs + i]);
    return known;
}

// An undefined input element makes its row or column undefined; the row and column of the exact element decide.
void define_outputs(Warp& w, const Op& op, const MmaShape& s) {
    u32 all = known_inputs(w, op, s);
    if (all == kFull) {
        for (int i = 0; i < s.c_regs; ++i) w.defined(op.list[i]) = kFull;
        return;
    }
    u32 bad_rows = 0, bad_cols = 0;
    int tiles = s.m / 8;
    for (int reg = 0; reg < s.a_regs; ++reg)
        for_lanes(~w.defined(op.list[s.c_regs + reg]),
                  [&](int lane) { bad_rows |= 1u << (lane / 4 + 8 * (reg % tiles)); });
    for (int reg = 0; reg < s.b_regs; ++reg)
        for_lanes(~w.defined(op.list[s.c_regs + s.a_regs + reg]), [&](int lane) { bad_cols |= 1u << (lane / 4); });
    int per = s.half_accumulator ? 2 : 1;
    u32 outputs[16];
    for (int reg = 0; reg < s.c_regs; ++reg) {
        u32 known = w.defined(c_operand(op, s, reg));
        for (int lane = 0; lane < kLanes; ++lane)
            for (int e = 0; e < per; ++e) {
                Position p = c_position(lane, reg * per + e);
                if (lane_in(bad_rows, p.row) || lane_in(bad_cols, p.col)) known &= ~(1u << lane);
            }
        outputs[reg] = known;
    }
    for (int reg = 0; reg < s.c_regs; ++reg) w.defined(op.list[reg]) = outputs[reg];  // destinations may be sources
}

const MmaShape& shape_of(const Op& op) { return *static_cast<const MmaShape*>(op.form); }

bool enter(Warp& w, const MmaShape& s) {
    if (!enter_whole_warp(w)) return false;
    w.cta->counters->mma_flop += 2ull * s.m * s.n * s.k;
    return true;
}

void op_mma_float(Warp& w, const Op& op) {
    const MmaShape& s = shape_of(op);
    if (!enter(w, s)) return;
    Matrices<float> m;
    gather_a(w, op, s, m);
    gather_b(w, op, s, m);
    for (int i = 0; i < s.c_regs; ++i) {
        const u32* c = w.cells<u32>(c_operand(op, s, i));
        for (int lane = 0; lane < kLanes; ++lane) {
            if (s.half_accumulator) {
                Position p = c_position(lane, 2 * i);
                m.c[p.row][p.col] = to_float(Half{static_cast<u16>(c[lane])});
                m.c[p.row][p.col + 1] = to_float(Half{static_cast<u16>(c[lane] >> 16)});
            } else {
                m.c[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2] = bit_cast<float>(c[lane]);
            }
        }
    }
    multiply(m, s.m, s.k);
    define_outputs(w, op, s);
    for (int i = 0; i < s.c_regs; ++i) {
        u32* d = w.cells<u32>(op.list[i]);
        for (int lane = 0; lane < kLanes; ++lane) {
            if (s.half_accumulator) {
                Position p = c_position(lane, 2 * i);
                d[lane] =
                    static_cast<u32>(half_from_float(m.c[p.row][p.col + 1])) << 16 | half_from_float(m.c[p.row][p.col]);
            } else {
                d[lane] = bit_cast<u32>(canonical(m.c[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2]));
            }
        }
    }
}

// The frequent shapes (mma_half.cpp); op.list holds d, a, b, c.
template <class H>
void op_mma_half(Warp& w, const Op& op) {
    const MmaShape& s = shape_of(op);
    if (!enter(w, s)) return;
    multiply_halves<H>(w, op.list, op.list + s.c_regs, op.list + s.c_regs + s.a_regs,
                       op.list + s.c_regs + s.a_regs + s.b_regs, s.b_regs);
    define_outputs(w, op, s);
}

// .satfinite clamps the 32-bit sum; the exact one is kept in 64 bits.
void op_mma_integer(Warp& w, const Op& op) {
    const MmaShape& s = shape_of(op);
    if (!enter(w, s)) return;
    Matrices<s32> m;
    gather_a(w, op, s, m);
    gather_b(w, op, s, m);
    s64 sums[16][8] = {};
    for (int i = 0; i < s.m; ++i)
        for (int k = 0; k < s.k; ++k)
            for (int j = 0; j < 8; ++j) sums[i][j] += static_cast<s64>(m.a[i][k]) * m.b[k][j];
    for (int i = 0; i < s.c_regs; ++i) {
        const u32* c = w.cells<u32>(c_operand(op, s, i));
        for (int lane = 0; lane < kLanes; ++lane) {
            Position p = c_position(lane, i);
            sums[p.row][p.col] += static_cast<s32>(c[lane]);
        }
    }
    define_outputs(w, op, s);
    for (int i = 0; i < s.c_regs; ++i) {
        u32* d = w.cells<u32>(op.list[i]);
        for (int lane = 0; lane < kLanes; ++lane) {
            Position p = c_position(lane, i);
            s64 sum = sums[p.row][p.col];
            if (s.saturate) sum = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;
            d[lane] = static_cast<u32>(sum);
        }
    }
}

// m8n8k4 (and m16n8k4/8/16) in double precision: one element a register.
void op_mma_double(Warp& w, const Op& op) {
    const MmaShape& s = shape_of(op);
    if (!enter(w, s)) return;
    Matrices<double> m;
    for (int i = 0; i < s.a_regs; ++i)
        for (int lane = 0; lane < kLanes; ++lane) {
            Position p = a_position(lane, i, 1, s.m);
            m.a[p.row][p.col] = w.cells<double>(op.list[s.c_regs + i])[lane];
        }
    for (int i = 0; i < s.b_regs; ++i)
        for (int lane = 0; lane < kLanes; ++lane) {
            Position p = b_position(lane, i, 1);
            m.b[p.row][p.col] = w.cells<double>(op.list[s.c_regs + s.a_regs + i])[lane];
        }
    for (int i = 0; i < s.c_regs; ++i)
        for (int lane = 0; lane < kLanes; ++lane) {
            Position p = c_position(lane, i);
            m.c[p.row][p.col] = w.cells<double>(c_operand(op, s, i))[lane];
        }
    multiply(m, s.m, s.k);
    define_outputs(w, op, s);
    for (int i = 0; i < s.c_regs; ++i)
        for (int lane = 0; lane < kLanes; ++lane) {
            Position p = c_position(lane, i);
            w.cells<double>(op.list[i])[lane] = m.c[p.row][p.col];
        }
}

MmaShape take_shape(Form& f) {
    struct Named {
        const char* name;
        u8 m, n, k;
    };
    // clang-format off
    static const Named shapes[] = {{"m16n8k4", 16, 8, 4}, {"m16n8k8", 16, 8, 8}, {"m16n8k16", 16, 8, 16},
                                   {"m16n8k32", 16, 8, 32}, {"m8n8k4", 8, 8, 4}, {"m8n8k16", 8, 8, 16}};
    // clang-format on
    for (const auto& shape : shapes)
        if (f.take(shape.name)) return MmaShape{shape.m, shape.n, shape.k, 0, 0, 0, kF16, kF16, false, false};
    f.unsupported("shape of the matrices");
}

void decode_mma(Form& f) {
    Decoder& d = f.decoder;
    if (!f.take("sync") || !f.take("aligned")) f.unsupported();
    MmaShape s = take_shape(f);
    if (!f.take("row") || !f.take("col")) f.unsupported("layouts other than .row.col");
    s.saturate = f.take("satfinite");
    f.take("rn");
    std::string dt = f.take_first_type(), at = f.take_first_type(), bt = f.take_first_type(), ct = f.take_first_type();
    if (!parse_input(at, s.a_type) || !parse_input(bt, s.b_type)) f.unsupported("input types");
    if (s.a_type == kE4m3 || s.a_type == kE5m2) f.require_target(89);
    if (s.m == 8 && s.a_type == kF16) f.unsupported("m8n8k4 of .f16");  // its quad-pair layout is a Volta relic
    if (dt != ct) f.unsupported("accumulators of different types");
    s.half_accumulator = dt == "f16";
    bool wide = dt == "f64", integer = dt == "s32";
    int bytes = wide ? 8 : 4;
    std::vector<u32> refs;
    for (const Operand& x : f.at(0).items) refs.push_back(d.dest(x, bytes));
    for (int i = 1; i < 4; ++i)
        for (const Operand& x : f.at(static_cast<size_t>(i)).items) refs.push_back(d.source(x, bytes));
    if (f.at(0).kind != Operand::kVector) f.unsupported("scalar operands");
    s.c_regs = static_cast<u8>(f.at(0).items.size());
    s.a_regs = static_cast<u8>(f.at(1).items.size());
    s.b_regs = static_cast<u8>(f.at(2).items.size());
    bool frequent =
        s.m == 16 && dt == "f32" && s.a_type == s.b_type && (s.a_type == kF16 || s.a_type == kBf16) && s.c_regs == 4;
    Handler fn = wide               ? op_mma_double
                 : integer          ? op_mma_integer
                 : !frequent        ? op_mma_float
                 : s.a_type == kF16 ? op_mma_half<Half>
                                    : op_mma_half<Bfloat>;
    Op& op = d.emit(fn, OpClass::Mma);
    op.list = d.list(refs);
    op.form = d.keep(std::make_shared<MmaShape>(s));
}

}  // namespace

bool parse_input(const std::string& type, Input& out) {
    static const std::map<std::string, Input> types{{"f16", kF16},   {"bf16", kBf16}, {"tf32", kTf32}, {"f32", kF32},
                                                    {"f64", kF64},   {"s8", kS8},     {"u8", kU8},     {"s32", kS32},
                                                    {"e4m3", kE4m3}, {"e5m2", kE5m2}};
    auto it = types.find(type);
    if (it == types.end()) return false;
    out = it->second;
    return true;
}

void add_mma_families(FamilyTable& t) { t["mma"] = decode_mma; }

}  // namespace ptxsim
