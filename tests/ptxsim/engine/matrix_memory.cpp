// ldmatrix, stmatrix, movmatrix (PTX ISA 9.7.14.5.15-17). Each 8x8 matrix of 16-bit elements has eight rows of 16
// bytes, whose addresses eight lanes give: 0-7 for the first matrix, 8-15 for the second, and so on.
#include "access.h"
#include "control.h"
#include "counters.h"
#include "lanes.h"
#include "matrix_warp.h"

namespace ptxsim {

namespace {

// The rows' shared addresses, checked. Only lanes that give a row need a defined address.
void row_offsets(Warp& w, const Op& op, int rows, u32* offsets) {
    u32 givers = rows == 32 ? kFull : (1u << rows) - 1, active = w.active;
    w.active &= givers;
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    w.active = active;
    for (int i = 0; i < rows; ++i) {
        u64 address = addresses.at[i];
        if (op.space == Space::None && resolve_generic(address) != Space::Shared)
            w.fail(ErrorKind::OutOfBounds, "A matrix row's address is not in shared memory.", i);
        check_alignment(w, i, address, 16, "matrix row");
        shared_pointer(w, i, address, 16);
        offsets[i] = static_cast<u32>(address);
    }
}

// Lane i gets elements 2(i%4), 2(i%4)+1 of row i/4: four lanes get a row as it is.
void load_plain(const u8* shared, const u32* rows, u32* d) {
    for (int i = 0; i < 8; ++i) std::memcpy(d + 4 * i, shared + rows[i], 16);
}

typedef u16 Halves __attribute__((vector_size(16)));
typedef u32 Words __attribute__((vector_size(16)));

// Lane i gets elements 2(i%4), 2(i%4)+1 of column i/4: pairs of rows interleave to words, and those are transposed.
void load_transposed(const u8* shared, const u32* rows, u32* d) {
    Words pairs[4][2];  // of rows 2t, 2t+1: columns 0-3 and 4-7
    for (int t = 0; t < 4; ++t) {
        Halves even, odd;
        std::memcpy(&even, shared + rows[2 * t], 16);
        std::memcpy(&odd, shared + rows[2 * t + 1], 16);
        pairs[t][0] = (Words)__builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
        pairs[t][1] = (Words)__builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int h = 0; h < 2; ++h) {
        Words a = __builtin_shufflevector(pairs[0][h], pairs[1][h], 0, 4, 1, 5);
        Words b = __builtin_shufflevector(pairs[2][h], pairs[3][h], 0, 4, 1, 5);
        Words c = __builtin_shufflevector(pairs[0][h], pairs[1][h], 2, 6, 3, 7);
        Words e = __builtin_shufflevector(pairs[2][h], pairs[3][h], 2, 6, 3, 7);
        Words columns[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                            __builtin_shufflevector(c, e, 0, 1, 4, 5), __builtin_shufflevector(c, e, 2, 3, 6, 7)};
        std::memcpy(d + 16 * h, columns, sizeof columns);
    }
}

void load_matrix(Warp& w, Ref dst, const u32* rows, bool transposed) {
    SharedShadow& shadow = w.cta->shadow;
    u32 bad_rows = 0;
    for (int i = 0; i < 8; ++i) bad_rows |= static_cast<u32>(!shadow.read_row(w, rows[i])) << i;
    const u8* shared = w.cta->shared.data();
    u32* d = w.cells<u32>(dst);
    transposed ? load_transposed(shared, rows, d) : load_plain(shared, rows, d);
    u32 known = kFull;
    for (int lane = 0; bad_rows && lane < kLanes; ++lane) {
        u32 touched = transposed ? 3u << (lane % 4 * 2) : 1u << (lane / 4);
        if (bad_rows & touched) known &= ~(1u << lane);
    }
    w.defined(dst) = known;
}

void op_ldmatrix(Warp& w, const Op& op) {
    if (!enter_whole_warp(w)) return;
    u32 rows[kLanes];
    row_offsets(w, op, 8 * op.count, rows);
    count_row_wavefronts(w.cta->profile[w.current_pc()], rows, 8 * op.count);
    for (int m = 0; m < op.count; ++m) load_matrix(w, op.list[m], rows + 8 * m, op.matrix.transposed);
}

void op_stmatrix(Warp& w, const Op& op) {
    if (!enter_whole_warp(w)) return;
    u32 rows[kLanes];
    row_offsets(w, op, 8 * op.count, rows);
    count_row_wavefronts(w.cta->profile[w.current_pc()], rows, 8 * op.count);
    for (int m = 0; m < op.count; ++m) {
        const u32* s = w.cells<u32>(op.list[m]);
        u32 known = w.defined(op.list[m]);
        for (int lane = 0; lane < kLanes; ++lane)
            for (int e = 0; e < 2; ++e) {
                bool trans = op.matrix.transposed;
                int row = trans ? lane % 4 * 2 + e : lane / 4, col = trans ? lane / 4 : lane % 4 * 2 + e;
                u32 at = rows[8 * m + row] + 2 * static_cast<u32>(col);
                u16 half = static_cast<u16>(s[lane] >> (16 * e));
                w.cta->shadow.write(w, lane, at, 2, lane_in(known, lane), reinterpret_cast<u8*>(&half));
                std::memcpy(w.cta->shared.data() + at, &half, 2);
            }
    }
}

// movmatrix.trans: the fragment of the transposed matrix.
void op_movmatrix(Warp& w, const Op& op) {
    if (!enter_whole_warp(w)) return;
    u16 matrix[8][8];
    const u32* a = w.cells<u32>(op.a);
    for (int lane = 0; lane < kLanes; ++lane)
        for (int e = 0; e < 2; ++e) matrix[lane / 4][lane % 4 * 2 + e] = static_cast<u16>(a[lane] >> (16 * e));
    u32* d = w.cells<u32>(op.dst);
    u32 known = w.defined(op.a) == kFull ? kFull : 0;
    for (int lane = 0; lane < kLanes; ++lane)
        d[lane] = static_cast<u32>(matrix[lane % 4 * 2 + 1][lane / 4]) << 16 | matrix[lane % 4 * 2][lane / 4];
    w.define(op.dst, known);
}

struct MatrixForm {
    int count;
    bool transposed, shared;
};

MatrixForm take_matrix(Form& f) {
    if (!f.take("sync") || !f.take("aligned")) f.unsupported();
    std::string count = f.take_any({"x1", "x2", "x4"});
    MatrixForm m{count.empty() ? 1 : count[1] - '0', f.take("trans"), !f.take_any({"shared", "shared::cta"}).empty()};
    if (!f.take("m8n8")) f.unsupported("matrices other than m8n8");
    f.take_type();
    return m;
}

std::vector<const Operand*> items_of(const Operand& operand) {
    std::vector<const Operand*> out;
    if (operand.kind != Operand::kVector) return {&operand};
    for (const Operand& item : operand.items) out.push_back(&item);
    return out;
}

void fill(Form& f, Op& op, const MatrixForm& m, const Address& address, const std::vector<u32>& refs) {
    if (static_cast<int>(refs.size()) != m.count) f.unsupported("number of registers");
    set_address(op, address);
    op.space = m.shared ? Space::Shared : Space::None;
    op.count = static_cast<u8>(m.count);
    op.matrix = {m.transposed, false};
    op.list = f.decoder.list(refs);
}

void decode_ldmatrix(Form& f) {
    MatrixForm m = take_matrix(f);
    std::vector<u32> refs;
    for (const Operand* x : items_of(f.at(0))) refs.push_back(f.decoder.dest(*x, 4));
    Address address = f.decoder.address(f.at(1), Space::Shared);
    fill(f, f.decoder.emit(op_ldmatrix, OpClass::LdMatrix), m, address, refs);
}

void decode_stmatrix(Form& f) {
    MatrixForm m = take_matrix(f);
    std::vector<u32> refs;
    for (const Operand* x : items_of(f.at(1))) refs.push_back(f.decoder.source(*x, 4));
    Address address = f.decoder.address(f.at(0), Space::Shared);
    f.decoder.narrow_shared_granule(1);
    fill(f, f.decoder.emit(op_stmatrix, OpClass::StoreShared), m, address, refs);
}

void decode_movmatrix(Form& f) {
    if (!f.take("sync") || !f.take("aligned") || !f.take("m8n8") || !f.take("trans")) f.unsupported();
    f.take_type();
    Ref a = f.decoder.source(f.at(1), 4);
    Op& op = f.decoder.emit(op_movmatrix, OpClass::Move);
    op.a = a;
    op.dst = f.decoder.dest(f.at(0), 4);
}

}  // namespace

void add_matrix_families(FamilyTable& t) {
    t["ldmatrix"] = decode_ldmatrix;
    t["stmatrix"] = decode_stmatrix;
    t["movmatrix"] = decode_movmatrix;
}

}  // namespace ptxsim
