// Data movement (PTX ISA 9.7.9): mov, cvta, isspacep, and packing of vectors.
#include "move.h"

#include <chrono>

#include "control.h"
#include "cta.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

template <class T>
void op_local_address(Warp& w, const Op& op) {
    T* d = w.cells<T>(op.dst);
    T value = static_cast<T>(w.fragment().frames.back().local + static_cast<u64>(op.offset));
    for_lanes(w.active, [&](int lane) { d[lane] = value; });
    w.define(op.dst, kFull);
}
template void op_local_address<u32>(Warp&, const Op&);
template void op_local_address<u64>(Warp&, const Op&);

void op_set_predicate(Warp& w, const Op& op) { w.set_predicate(op.to_p, static_cast<u32>(op.imm), kFull); }
void op_not_predicate(Warp& w, const Op& op) {
    w.set_predicate(op.to_p, ~w.predicates[op.p], w.predicates_defined[op.p]);
}

namespace {

template <class D, class S>
void op_cast(Warp& w, const Op& op) {
    map1<D, S>(w, op.dst, op.a, [](S x) { return static_cast<D>(x); });
}

void op_move_predicate(Warp& w, const Op& op) {
    w.set_predicate(op.to_p, w.predicates[op.p], w.predicates_defined[op.p]);
}

// mov.b64 %rd, %clock64 and friends: PTX ISA 10, "predefined, read-only"; here the warp's own instruction count.
template <class T>
void op_clock(Warp& w, const Op& op) {
    u64 ticks = w.cta->issued + 1;
    for_lanes(w.active, [&](int i) { w.cells<T>(op.dst)[i] = static_cast<T>(ticks); });
    w.define(op.dst, kFull);
}

// mov.b64 {a, b}, c: "unpack"; elements of op.bytes from the least significant end. op.a may be narrow or wide.
void op_unpack(Warp& w, const Op& op) {
    u64 values[kLanes];
    if (op.pack.whole == 8) std::memcpy(values, w.cells<u64>(op.a), sizeof values);
    else
        for (int i = 0; i < kLanes; ++i) values[i] = w.cells<u32>(op.a)[i];
    u32 known = w.defined(op.a);
    u64 mask = op.bytes == 8 ? ~0ull : (1ull << (8 * op.bytes)) - 1;
    for (int k = 0; k < op.count; ++k) {
        u32* d = w.cells<u32>(op.list[k]);
        for_lanes(w.active, [&](int i) { d[i] = static_cast<u32>(values[i] >> (8 * op.bytes * k) & mask); });
        w.define(op.list[k], known);
    }
}

// mov.b64 d, {a, b}: "pack".
void op_pack(Warp& w, const Op& op) {
    u64 values[kLanes] = {};
    u32 known = kFull;
    for (int k = 0; k < op.count; ++k) {
        const u32* s = w.cells<u32>(op.list[k]);
        for (int i = 0; i < kLanes; ++i) values[i] |= static_cast<u64>(s[i]) << (8 * op.bytes * k);
        known &= w.defined(op.list[k]);
    }
    if (op.pack.whole == 8) blend(w.cells<u64>(op.dst), values, w.active);
    else for_lanes(w.active, [&](int i) { w.cells<u32>(op.dst)[i] = static_cast<u32>(values[i]); });
    w.define(op.dst, known);
}

template <class T>
void op_add_window(Warp& w, const Op& op) {
    u64 window = static_cast<u64>(op.imm);
    map1<u64, T>(w, op.dst, op.a, [=](T x) { return static_cast<u64>(x) + window; });
}

template <class T>
void op_strip_window(Warp& w, const Op& op) {
    map1<T, u64>(w, op.dst, op.a, [](u64 x) { return static_cast<T>(x & ~kWindowMask); });
}

void op_is_space(Warp& w, const Op& op) {
    const u64* a = w.cells<u64>(op.a);
    u32 result = 0;
    for (int i = 0; i < kLanes; ++i) result |= ((a[i] & kWindowMask) == static_cast<u64>(op.imm) ? 1u : 0u) << i;
    w.set_predicate(op.to_p, result, w.defined(op.a));
}

u64 window_of(const std::string& space) {
    if (space == "shared" || space == "shared::cta" || space == "shared::cluster") return kSharedWindow;
    if (space == "local") return kLocalWindow;
    if (space == "param" || space == "param::entry") return kParamWindow;
    return 0;
}

void decode_vector_mov(Form& f, int bytes) {
    Decoder& d = f.decoder;
    bool unpack = f.at(0).kind == Operand::kVector;
    const Operand& vector = f.at(unpack ? 0 : 1);
    const Operand& scalar = f.at(unpack ? 1 : 0);
    if (vector.items.empty() || bytes % static_cast<int>(vector.items.size())) f.unsupported("vector of that size");
    int element = bytes / static_cast<int>(vector.items.size());
    if (element > 4) f.unsupported("elements of 64 bits");
    std::vector<u32> refs;
    for (const Operand& item : vector.items) refs.push_back(unpack ? d.dest(item, element) : d.source(item, element));
    Ref other = unpack ? d.source(scalar, bytes) : d.dest(scalar, bytes);
    Op& op = d.emit(unpack ? op_unpack : op_pack, OpClass::Move);
    (unpack ? op.a : op.dst) = other;
    op.list = d.list(refs);
    op.count = static_cast<u8>(refs.size());
    op.bytes = static_cast<u8>(element);
    op.pack = {static_cast<u8>(bytes)};
}

// 9.7.9.4 mov: "Write register d with the value of a"; predicates, clocks, packing, addresses.
void decode_mov(Form& f) {
    Decoder& d = f.decoder;
    std::string type = f.take_type();
    if (type == "pred") {
        int source = d.predicate(f.at(1));
        Op& op = d.emit(op_move_predicate, OpClass::Move);
        op.to_p = d.predicate_dest(f.at(0));
        op.p = source;
        return;
    }
    int bytes = type_size(type);
    if (bytes == 16) f.unsupported("128-bit registers");
    if (f.at(0).kind == Operand::kVector || f.at(1).kind == Operand::kVector) return decode_vector_mov(f, bytes);
    const std::string& name = f.at(1).name;
    if (f.at(1).kind == Operand::kSymbol &&
        (name == "%clock" || name == "%clock64" || name == "%clock_hi" || name.rfind("%globaltimer", 0) == 0)) {
        Op& op = d.emit(bytes == 4 ? op_clock<u32> : op_clock<u64>, OpClass::Other);
        op.dst = d.dest(f.at(0), bytes);
        return;
    }
    Ref source = d.source(f.at(1), type);
    Op& op = d.emit(bytes == 8 ? op_cast<u64, u64> : op_cast<u32, u32>, OpClass::Move);
    op.a = source;
    op.dst = d.dest(f.at(0), bytes);
}

// 9.7.9.20 cvta: "Convert address from .const, .global, .local, .shared or .param to generic, or vice-versa".
void decode_cvta(Form& f) {
    Decoder& d = f.decoder;
    bool to = f.take("to");
    std::string space =
        f.take_any({"global", "shared", "local", "const", "param", "shared::cta", "shared::cluster", "param::entry"});
    int bytes = type_size(f.take_type());
    u64 window = window_of(space);
    int from_bytes = f.at(1).kind == Operand::kReg ? d.operand_bytes(f.at(1)) : bytes;
    Ref source = d.source(f.at(1), from_bytes);
    if (window == 0) return emit_cast(d, d.dest(f.at(0), bytes), bytes, source, from_bytes);
    Op& op = to ? d.emit(bytes == 8 ? op_strip_window<u64> : op_strip_window<u32>, OpClass::Move)
                : d.emit(from_bytes == 8 ? op_add_window<u64> : op_add_window<u32>, OpClass::Move);
    op.a = source;
    op.dst = d.dest(f.at(0), bytes);
    op.imm = static_cast<s64>(window);
}

// 9.7.9.19 isspacep: "Query whether a generic address falls within a specified state space window".
void decode_isspacep(Form& f) {
    std::string space =
        f.take_any({"global", "shared", "local", "const", "param", "shared::cta", "shared::cluster", "param::entry"});
    Ref address = f.decoder.source(f.at(1), 8);
    Op& op = f.decoder.emit(op_is_space, OpClass::Move);
    op.to_p = f.decoder.predicate_dest(f.at(0));
    op.a = address;
    op.imm = static_cast<s64>(window_of(space));
}

void decode_nothing(Form& f) { f.left.clear(); }

// 9.7.9.17 createpolicy and 9.7.9.15 applypriority, prefetch, discard: hints that change no value.
void decode_createpolicy(Form& f) {
    f.left.clear();
    Op& op = f.decoder.emit(op_cast<u64, u64>, OpClass::Move);
    op.dst = f.decoder.dest(f.at(0), 8);
    op.a = f.decoder.constant(0, 8);
}

}  // namespace

void emit_cast(Decoder& d, Ref dst, int dst_bytes, Ref src, int src_bytes) {
    Handler fn = dst_bytes == 8 ? (src_bytes == 8 ? op_cast<u64, u64> : op_cast<u64, u32>)
                                : (src_bytes == 8 ? op_cast<u32, u64> : op_cast<u32, u32>);
    Op& op = d.emit(fn, OpClass::Move);
    op.dst = dst;
    op.a = src;
}

void add_move_families(FamilyTable& t) {
    t["mov"] = decode_mov;
    t["cvta"] = decode_cvta;
    t["isspacep"] = decode_isspacep;
    t["createpolicy"] = decode_createpolicy;
    for (const char* hint : {"prefetchu", "applypriority", "discard"}) t[hint] = decode_nothing;
}

}  // namespace ptxsim
