// cp.async.bulk, cp.reduce.async.bulk and cp.async.bulk.prefetch of lines of bytes, and bulk groups (PTX ISA
// 9.7.9.25.4). Those of tensors are in tensor_copy.cpp.
#include "bulk_decode.h"

#include "atomic.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

void pack_address(std::vector<u32>& list, const Address& address) {
    u64 offset = static_cast<u64>(address.offset);
    for (u64 word : {static_cast<u64>(address.base), offset, offset >> 32, static_cast<u64>(address.base_bytes != 8)})
        list.push_back(static_cast<u32>(word));
}

void gather_packed(Warp& w, const Op& op, int index, LaneAddresses& out) {
    const u32* packed = op.list + kPackedAddress * index;
    gather_from(w, packed[0], packed[1] | static_cast<u64>(packed[2]) << 32, packed[3], out);
}

SharedPlace bulk_place(Warp& w, int lane, u64 address, u32 bytes, u32 align, const char* what) {
    if ((address & kWindowMask) == kSharedWindow) address &= ~kWindowMask;
    check_alignment(w, lane, address, align, what);
    return shared_place(w, lane, address, bytes);
}

namespace {

enum BulkKind : u8 { kLoad, kSharedCopy, kStore };

constexpr u32 kLineAlign = 16;

u32 line_size(Warp& w, const Op& op, int lane) {
    u32 bytes = w.cells<u32>(op.c)[lane];
    if (bytes == 0 || bytes % kLineAlign)
        w.fail(ErrorKind::Misaligned,
               "The size " + std::to_string(bytes) + " of a bulk copy is no multiple of 16 bytes.", lane);
    return bytes;
}

void load_lines(Warp& w, const Op& op, u32 bytes, int lane, u64 to, u64 from, u64 barrier) {
    check_alignment(w, lane, from, kLineAlign, "source of a bulk copy");
    Box box = line_box(from, bytes);
    w.cta->counters->bulk_global_bytes += box.global_bytes();
    each_destination(w, op, lane, to, barrier, bytes, kLineAlign,
                     [&](SharedPlace place, SharedPlace signal) { start_load(w, lane, box, place, signal); });
}

void op_line(Warp& w, const Op& op) {
    LaneAddresses to, from, barrier;
    gather_packed(w, op, 0, to);
    gather_packed(w, op, 1, from);
    if (op.mode != kStore) gather_packed(w, op, 2, barrier);
    w.require_defined(w.defined(op.c), "the size of a bulk copy");
    Reduction reduction{op.bulk.reduces, op.bulk.operation, op.bulk.type, op.bulk.element_bytes};
    for_lanes(w.active, [&](int i) {
        u32 bytes = line_size(w, op, i);
        if (op.mode == kLoad) return load_lines(w, op, bytes, i, to.at[i], from.at[i], barrier.at[i]);
        SharedPlace source = bulk_place(w, i, from.at[i], bytes, kLineAlign, "source of a bulk copy");
        if (source.cta != w.cta)
            w.fail(ErrorKind::OutOfBounds, "The source of a bulk copy is in another CTA's shared memory.", i);
        if (op.mode == kSharedCopy) {
            SharedPlace place = bulk_place(w, i, to.at[i], bytes, kLineAlign, "destination of a bulk copy");
            SharedPlace signal = bulk_place(w, i, barrier.at[i], 8, 8, "mbarrier");
            return start_shared_copy(w, i, source.offset, bytes, place, signal);
        }
        check_alignment(w, i, to.at[i], kLineAlign, "destination of a bulk copy");
        bool again = asked_before(w, i, [&](int j) {
            return to.at[i] == to.at[j] && from.at[i] == from.at[j] && bytes == w.cells<u32>(op.c)[j];
        });
        start_store(w, i, line_box(to.at[i], bytes), source.offset, reduction, again);
    });
}

// A prefetch moves nothing, but what it names has to be there.
void op_prefetch_line(Warp& w, const Op& op) {
    LaneAddresses from;
    gather_packed(w, op, 0, from);
    w.require_defined(w.defined(op.c), "the size of a bulk prefetch");
    for_lanes(w.active, [&](int i) {
        Allocation* a;
        check_alignment(w, i, from.at[i], kLineAlign, "bulk prefetch");
        global_pointer(w, i, from.at[i], line_size(w, op, i), false, a);
    });
}

void op_commit(Warp& w, const Op&) { commit_bulk_group(w); }
void op_wait(Warp& w, const Op& op) { wait_bulk_groups(w, static_cast<u32>(op.imm), op.wait.only_reads); }

void decode_prefetch_line(Form& f) {
    Decoder& d = f.decoder;
    if (!f.take("L2") || !f.take("global")) f.unsupported();
    f.take_cache_hints();
    std::vector<u32> list;
    pack_address(list, d.address(f.at(0), Space::Global));
    Ref size = d.source(f.at(1), 4);
    Op& op = d.emit(op_prefetch_line, OpClass::BulkCopy);
    op.list = d.list(list);
    op.c = size;
}

bool take_group(Form& f) {
    if (f.take("commit_group")) {
        f.decoder.emit(op_commit, OpClass::BulkCopy);
        return true;
    }
    if (!f.take("wait_group")) return false;
    bool only_reads = f.take("read");
    if (f.at(0).kind != Operand::kImm) f.unsupported();
    Op& op = f.decoder.emit(op_wait, OpClass::BulkCopy);
    op.imm = static_cast<s64>(f.at(0).bits);
    op.wait = {false, only_reads};
    return true;
}

// The operands after the mbarrier are a mask of CTAs, if .multicast is there, and a cache policy.
void decode_line(Form& f, bool reduces) {
    Decoder& d = f.decoder;
    bool to_global = f.inst.has("global") && f.inst.has("bulk_group");
    bool from_global = f.inst.has("global") && !to_global;
    for (const char* part : {"shared::cluster", "shared::cta", "global"}) f.take(part);
    bool signals = f.take("mbarrier::complete_tx::bytes");
    if (!signals && !f.take("bulk_group")) f.unsupported();
    if (signals && reduces) f.unsupported("reductions in shared memory");
    bool multicast = f.take("multicast::cluster");
    f.take_cache_hints();
    Reduction reduction = reduces ? take_reduction(f, true) : Reduction{};
    std::vector<u32> list;
    pack_address(list, d.address(f.at(0), to_global ? Space::Global : Space::Shared));
    pack_address(list, d.address(f.at(1), from_global ? Space::Global : Space::Shared));
    if (signals) pack_address(list, d.address(f.at(3), Space::Shared));
    Ref size = d.source(f.at(2), 4), mask = multicast ? d.source(f.at(4), 2) : 0;
    Op& op = d.emit(op_line, OpClass::BulkCopy);
    op.list = d.list(list);
    op.c = size;
    op.d = mask;
    op.mode = to_global ? kStore : from_global ? kLoad : kSharedCopy;
    op.bulk = {
        static_cast<u8>(signals ? 3 : 2), 1, multicast, reduces, reduction.operation, reduction.type, reduction.bytes};
}

}  // namespace

// Types that reduce: of .f16 and .bf16 add (with .noftz), min and max; of .f32 and .f64 add.
Reduction take_reduction(Form& f, bool typed) {
    Reduction r;
    r.on = true;
    std::string name = f.take_any({"add", "min", "max", "inc", "dec", "and", "or", "xor"});
    if (name.empty()) f.unsupported("its operation");
    r.operation = static_cast<u8>(reduction_operation(name));
    f.take("noftz");
    if (!typed) return r;
    std::string type = f.take_type();
    int index = reduction_type(type);
    if (index < 0) f.unsupported("type ." + type);
    r.type = static_cast<u8>(index);
    r.bytes = static_cast<u8>(type_size(type));
    bool real = type == "f32" || type == "f64";
    if (real && name != "add") f.unsupported("this operation on ." + type);
    return r;
}

void decode_bulk(Form& f) {
    f.require_target(90);
    bool reduces = f.take("reduce");
    f.take("async");
    f.take("bulk");
    if (!reduces && take_group(f)) return;
    bool prefetches = f.take("prefetch");
    if (f.take("tensor")) return decode_tensor_copy(f, reduces, prefetches);
    if (prefetches) return decode_prefetch_line(f);
    decode_line(f, reduces);
}

}  // namespace ptxsim
