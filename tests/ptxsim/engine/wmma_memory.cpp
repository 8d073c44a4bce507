// wmma.load and wmma.store (PTX ISA 9.7.14.4.3-4): each lane accesses the elements it holds, one by one, with all the
// checks of a load or store.
#include "access.h"
#include "counters.h"
#include "lanes.h"
#include "matrix_warp.h"
#include "wmma.h"

namespace ptxsim {

namespace {

// Where the matrix lies: the same for the whole warp.
struct Placed {
    Space space;
    u64 base, stride;  // in bytes
    bool column_major;
    u32 bytes;  // an element

    u64 at(Position p) const {
        u64 line = static_cast<u64>(column_major ? p.col : p.row),
            within = static_cast<u64>(column_major ? p.row : p.col);
        return base + line * stride + within * bytes;
    }
};

// "The behavior is undefined if all threads do not use ... the same values of p and stride."
[[noreturn]] void fail_different(Warp& w, int lane, const char* what) {
    w.fail(ErrorKind::Divergence, std::string("Lanes of one wmma instruction give different ") + what + ".", lane);
}

// The base is aligned to the lane's fragment, as the ISA says. It says so of every row too, but the CUDA programming
// guide allows rows at multiples of 16 bytes, and kernels pad by that much.
void check_placement(Warp& w, const WmmaMatrix& m, const Placed& placed) {
    u32 fragment = static_cast<u32>(m.fragment_bytes());
    check_alignment(w, 0, placed.base, fragment, "wmma matrix");
    check_alignment(w, 0, placed.stride, std::min(fragment, 16u), "stride of a wmma matrix, in bytes");
}

Placed place(Warp& w, const Op& op, const WmmaMatrix& m, bool column_major) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    for (int lane = 1; lane < kLanes; ++lane)
        if (addresses.at[lane] != addresses.at[0]) fail_different(w, lane, "addresses");
    u64 elements = static_cast<u64>(column_major ? m.rows() : m.cols());
    if (op.matrix.has_stride) {
        w.require_defined(w.defined(op.b), "the stride of a matrix");
        const u32* stride = w.cells<u32>(op.b);
        for (int lane = 1; lane < kLanes; ++lane)
            if (stride[lane] != stride[0]) fail_different(w, lane, "strides");
        elements = stride[0];
    }
    u32 bytes = static_cast<u32>(element_bytes(m.type));
    Placed placed{op.space, addresses.at[0], elements * bytes, column_major, bytes};
    if (placed.space == Space::None) placed.space = resolve_generic(placed.base);
    if (placed.space != Space::Global && placed.space != Space::Shared)
        w.fail(ErrorKind::OutOfBounds, "A wmma matrix is neither in global nor in shared memory.", 0);
    check_placement(w, m, placed);
    return placed;
}

// Counted in pieces of 16 bytes along the lines, as if by ldmatrix: what a GPU makes of it is unspecified.
void count(Warp& w, const WmmaMatrix& m, const Placed& placed) {
    int lines = placed.column_major ? m.cols() : m.rows(), bytes = m.size() / lines * static_cast<int>(placed.bytes);
    std::vector<u64> pieces;
    for (int line = 0; line < lines; ++line)
        for (int at = 0; at < bytes; at += 16)
            pieces.push_back(placed.base + static_cast<u64>(line) * placed.stride + static_cast<u64>(at));
    Profile& profile = w.cta->profile[w.current_pc()];
    for (size_t first = 0; first < pieces.size(); first += 8) {
        if (placed.space == Space::Shared) {
            u32 offsets[8];
            for (size_t i = 0; i < 8; ++i)
                offsets[i] = static_cast<u32>(pieces[std::min(first + i, pieces.size() - 1)]);
            count_row_wavefronts(profile, offsets, 8);
        } else {
            u32 lanes = (1u << std::min<size_t>(8, pieces.size() - first)) - 1;
            count_sectors(profile, pieces.data() + first, lanes, static_cast<u32>(std::min(bytes, 16)));
        }
    }
}

u64 load_element(Warp& w, const Placed& placed, int lane, u64 address, bool& known) {
    const u8* from;
    if (placed.space == Space::Shared) {
        from = shared_pointer(w, lane, address, placed.bytes);
        known = w.cta->shadow.read(w, lane, static_cast<u32>(address), placed.bytes);
    } else {
        Allocation* a;
        from = global_pointer(w, lane, address, placed.bytes, false, a);
        known = true;
        if (a) check_global_race(w, lane, *a, address, placed.bytes, GlobalAccess::Read);
        for (u32 b = 0; a && a->defined && b < placed.bytes; ++b) known &= a->defined[address + b - a->base] != 0;
    }
    u64 bits = 0;
    std::memcpy(&bits, from, placed.bytes);
    return bits;
}

void store_element(Warp& w, const Placed& placed, int lane, u64 address, u64 bits, bool known) {
    const u8* from = reinterpret_cast<const u8*>(&bits);
    if (placed.space == Space::Shared) {
        u8* to = shared_pointer(w, lane, address, placed.bytes);
        w.cta->shadow.write(w, lane, static_cast<u32>(address), placed.bytes, known, from);
        std::memcpy(to, from, placed.bytes);
        return;
    }
    if (!known && w.cta->checks(kCheckUndefined))
        throw SimError(ErrorKind::Undefined, "An undefined value is stored to global memory.")
            .at_lane(lane)
            .at_address(address);
    Allocation* a;
    u8* to = global_pointer(w, lane, address, placed.bytes, true, a);
    if (a) check_global_race(w, lane, *a, address, placed.bytes, GlobalAccess::Write);
    if (a && a->defined) std::memset(a->defined + (address - a->base), 1, placed.bytes);
    std::memcpy(to, from, placed.bytes);
}

// The memory's layout travels beside the fragment's, since accumulators have none.
struct Transfer {
    WmmaMatrix matrix;
    bool column_major;
};

void op_wmma_load(Warp& w, const Op& op) {
    const Transfer& t = wmma_payload<Transfer>(op);
    if (!enter_whole_warp(w)) return;
    Placed placed = place(w, op, t.matrix, t.column_major);
    count(w, t.matrix, placed);
    for (int reg = 0; reg < t.matrix.registers; ++reg) {
        w.defined(op.list[reg]) = kFull;
        std::memset(w.cells<u32>(op.list[reg]), 0, kLanes * (t.matrix.type == kF64 ? 8 : 4));
    }
    for_wmma_elements(t.matrix, w.cta->launch->seed, [&](int reg, int lane, int within, Position p) {
        bool known;
        u64 bits = load_element(w, placed, lane, placed.at(p), known);
        if (t.matrix.type == kF64) w.cells<u64>(op.list[reg])[lane] = bits;
        else
            w.cells<u32>(op.list[reg])[lane] |= static_cast<u32>(bits) << (8 * placed.bytes * static_cast<u32>(within));
        if (!known) w.defined(op.list[reg]) &= ~(1u << lane);
    });
}

void op_wmma_store(Warp& w, const Op& op) {
    const Transfer& t = wmma_payload<Transfer>(op);
    if (!enter_whole_warp(w)) return;
    Placed placed = place(w, op, t.matrix, t.column_major);
    count(w, t.matrix, placed);
    for_wmma_elements(t.matrix, w.cta->launch->seed, [&](int reg, int lane, int within, Position p) {
        Ref ref = op.list[reg];
        u64 cell = t.matrix.type == kF64 ? w.cells<u64>(ref)[lane]
                                         : w.cells<u32>(ref)[lane] >> (8 * placed.bytes * static_cast<u32>(within));
        store_element(w, placed, lane, placed.at(p), cell, lane_in(w.defined(ref), lane));
    });
}

MatrixUse take_use(Form& f) {
    std::string use = f.take_any({"a", "b", "c", "d"});
    if (use.empty()) f.unsupported("it names no matrix");
    return use == "a" ? MatrixUse::A : use == "b" ? MatrixUse::B : MatrixUse::Accumulator;
}

Transfer take_transfer(Form& f, size_t registers) {
    MatrixUse use = take_use(f);
    bool column = take_wmma_layout(f);
    WmmaMatrix shape = take_wmma_shape(f);
    std::string type = f.take_type();
    bool own_layout = use != MatrixUse::Accumulator;
    return {wmma_matrix(f, shape, use, type, own_layout && column, registers), column};
}

void emit_transfer(Form& f, bool load, size_t address_operand, const Transfer& t, const std::vector<u32>& refs) {
    Decoder& d = f.decoder;
    std::string named = f.take_any({"global", "shared", "shared::cta"});
    Space space = named == "global" ? Space::Global : named.empty() ? Space::None : Space::Shared;
    Address address = d.address(f.at(address_operand), space);
    if (address.framed) f.unsupported("a matrix in local memory");
    Ref stride = f.size() > 2 ? d.source(f.at(2), 4) : 0;
    bool shared = space == Space::Shared;
    OpClass cls = shared ? (load ? OpClass::LoadShared : OpClass::StoreShared)
                         : (load ? OpClass::LoadGlobal : OpClass::StoreGlobal);
    Op& op = d.emit(load ? op_wmma_load : op_wmma_store, cls);
    set_address(op, address);
    op.b = stride;
    op.space = space;
    op.matrix = {false, f.size() > 2};
    op.list = d.list(refs);
    op.form = wmma_payload(d, t);
}

}  // namespace

void decode_wmma_load(Form& f) {
    Transfer t = take_transfer(f, f.at(0).items.size());
    std::vector<u32> refs;
    for (const Operand& x : f.at(0).items) refs.push_back(f.decoder.dest(x, t.matrix.type == kF64 ? 8 : 4));
    emit_transfer(f, true, 1, t, refs);
}

void decode_wmma_store(Form& f) {
    Transfer t = take_transfer(f, f.at(1).items.size());
    std::vector<u32> refs;
    for (const Operand& x : f.at(1).items) refs.push_back(f.decoder.source(x, t.matrix.type == kF64 ? 8 : 4));
    if (element_bytes(t.matrix.type) == 2) f.decoder.narrow_shared_granule(1);
    emit_transfer(f, false, 0, t, refs);
}

}  // namespace ptxsim
