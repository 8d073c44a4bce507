// Both are "performed in the generic proxy", so that no proxy fence is asked for. As with bulk copies the bytes belong
// to the operation from issue until the phase of its mbarrier completes, and are visible to threads that know of that
// phase. Reductions of one phase may overlap; they are done one after the other.
#include "async_store.h"

#include <algorithm>

#include "atomic.h"
#include "bulk_copy.h"
#include "bulk_decode.h"
#include "cluster_shadow.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

constexpr u32 kMostBytes = 16;

struct Landing : AsyncTransfer {
    SharedPlace to, barrier;
    u32 bytes = 0;
    bool reduces = false, defined = true;
    u8 operation = 0, type = 0;
    alignas(8) u8 data[kMostBytes] = {};
    std::string text;

    void land() override {
        u8* at = to.cta->shared.data() + to.offset;
        SharedShadow& shadow = to.cta->shadow;
        for (u32 g = to.offset >> shadow.granule_shift();
             reduces && g <= (to.offset + bytes - 1) >> shadow.granule_shift(); ++g)
            defined &= (shadow.write_entry(g) & epoch::kDefined) != 0;
        if (reduces) reduce(operation, type, at, data, bytes);
        else std::memcpy(at, data, bytes);
        to.cta->proxy.end_write(to.offset, bytes, defined);
        signal_landing(barrier, bytes);
    }
    std::string describe() const override { return text; }
};

// Do these bytes belong to reductions of the same phase already?
bool reduced_already(const SharedPlace& to, u32 bytes, const MemoryBarrier& b) {
    const SharedShadow& shadow = to.cta->shadow;
    const std::vector<Op>& code = to.cta->program->code;
    for (u32 g = to.offset >> shadow.granule_shift(); g <= (to.offset + bytes - 1) >> shadow.granule_shift(); ++g) {
        u32 entry = shadow.write_entry(g);
        if ((entry | epoch::kDefined) != (epoch::make_owned(b.number, b.phase) | epoch::kDefined)) return false;
        if (!code[shadow.writer_pc(g)].bulk.reduces) return false;
    }
    return true;
}

void take_bytes(Warp& w, int lane, const Landing& l, MemoryBarrier& b) {
    if (!l.reduces || !reduced_already(l.to, l.bytes, b)) {
        bool defined = l.to.cta->remote->access(w, lane, l.to.offset, l.bytes, RemoteAccess::Copy);
        l.to.cta->proxy.begin_write(w, lane, l.to.offset, l.bytes, b);
        if (l.reduces) l.to.cta->proxy.end_write(l.to.offset, l.bytes, defined);  // what is reduced is still there
    } else {
        ++b.copies;
    }
    l.to.cta->copied_phases[b.offset] = b.phase;
}

void start(Warp& w, const Op& op, int lane, u64 address, u64 barrier) {
    auto l = std::make_unique<Landing>();
    l->bytes = static_cast<u32>(op.bytes) * op.count;
    l->to = bulk_place(w, lane, address, l->bytes, l->bytes, "asynchronous store");
    l->barrier = bulk_place(w, lane, barrier, 8, 8, "mbarrier");
    if (l->to.cta == w.cta)
        w.fail(
            ErrorKind::BadProgram,
            "The destination of an asynchronous store has to be in another CTA of the cluster than the thread's own.",
            lane);
    l->reduces = op.bulk.reduces;
    l->operation = op.bulk.operation;
    l->type = op.bulk.type;
    for (u32 k = 0; k < op.count; ++k) {
        Ref value = op.list[2 * kPackedAddress + k];
        l->defined &= lane_in(w.defined(value), lane);
        u64 bits = op.bytes == 8 ? w.cells<u64>(value)[lane] : w.cells<u32>(value)[lane];
        std::memcpy(l->data + k * op.bytes, &bits, op.bytes);
    }
    l->text = w.program->text_at(w.current_pc());
    take_bytes(w, lane, *l, barrier_of_copy(w, lane, l->to, l->barrier));
    AsyncProxy& proxy = l->to.cta->proxy;
    proxy.start(std::move(l));
}

void op_async_store(Warp& w, const Op& op) {
    LaneAddresses to, barrier;
    gather_packed(w, op, 0, to);
    gather_packed(w, op, 1, barrier);
    for_lanes(w.active, [&](int i) { start(w, op, i, to.at[i], barrier.at[i]); });
}

// [a], b, [mbar]
Op& emit(Form& f, const std::string& type) {
    Decoder& d = f.decoder;
    std::vector<u32> list;
    pack_address(list, d.address(f.at(0), Space::Shared));
    pack_address(list, d.address(f.at(2), Space::Shared));
    const Operand& value = f.at(1);
    size_t count = value.kind == Operand::kVector ? value.items.size() : 1;
    if (count * static_cast<size_t>(type_size(type)) > kMostBytes) f.unsupported("vector of that size");
    for (size_t k = 0; k < count; ++k)
        list.push_back(d.source(value.kind == Operand::kVector ? value.items[k] : value, type));
    Op& op = d.emit(op_async_store, OpClass::BulkCopy);
    op.list = d.list(list);
    op.bytes = static_cast<u8>(type_size(type));
    op.count = static_cast<u8>(count);
    return op;
}

void take_completion(Form& f) {
    f.require_target(90);
    f.take("async");
    f.take("shared::cluster");
    if (!f.take("mbarrier::complete_tx::bytes")) f.unsupported("only those that an mbarrier counts");
}

}  // namespace

void decode_async_store(Form& f) {
    take_completion(f);
    f.take("weak");
    f.take_any({"v2", "v4"});
    std::string type = f.take_type();
    if (type_size(type) < 4) f.unsupported("type ." + type);
    emit(f, type).bulk = {2, 0, false, false, 0, 0, 0};
}

void decode_async_reduction(Form& f) {
    take_completion(f);
    if (!f.take("relaxed") || !f.take("cluster")) f.unsupported();
    static const std::pair<const char*, const char*> forms[] = {
        {"inc", "u32"}, {"dec", "u32"}, {"min", "u32"}, {"min", "s32"}, {"max", "u32"}, {"max", "s32"},
        {"and", "b32"}, {"or", "b32"},  {"xor", "b32"}, {"add", "u32"}, {"add", "s32"}, {"add", "u64"}};
    auto asked = [&](const auto& form) { return f.inst.has(form.first) && f.inst.has(form.second); };
    if (std::none_of(std::begin(forms), std::end(forms), asked)) f.unsupported("this operation on this type");
    Reduction r = take_reduction(f, true);
    emit(f, r.bytes == 8 ? "u64" : "u32").bulk = {2, 0, false, true, r.operation, r.type, r.bytes};
}

}  // namespace ptxsim
