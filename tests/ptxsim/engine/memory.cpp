// ld and st (PTX ISA 9.7.9.8, 9.7.9.11) for every state space, width and vector.
#include "access.h"
#include "async_store.h"
#include "cluster.h"
#include "control.h"
#include "counters.h"
#include "cta.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

constexpr int kMaxElements = 8;

// ---- loads ----

// Where each lane's bytes lie, and which lanes' element k is defined.
struct Loaded {
    const u8* bytes[kLanes];
    u32 defined[kMaxElements];
};

template <class M, class C>
void scatter(C* d, const Loaded& from, u32 offset, u32 mask) {
    for_lanes(mask, [&](int i) {
        M value;
        std::memcpy(&value, from.bytes[i] + offset, sizeof value);
        d[i] = static_cast<C>(value);  // "sign- or zero-extended to the destination register width"
    });
}

template <class C>
void scatter_width(C* d, const Loaded& from, const Op& op, u32 offset, u32 mask) {
    bool is_signed = op.access.flags & kSigned;
    switch (op.bytes) {
        case 1: return is_signed ? scatter<s8, C>(d, from, offset, mask) : scatter<u8, C>(d, from, offset, mask);
        case 2: return is_signed ? scatter<s16, C>(d, from, offset, mask) : scatter<u16, C>(d, from, offset, mask);
        case 4: return is_signed ? scatter<s32, C>(d, from, offset, mask) : scatter<u32, C>(d, from, offset, mask);
        default: return scatter<u64, C>(d, from, offset, mask);
    }
}

// A 16-bit destination register keeps 16 bits of a sign-extended byte.
void store_elements(Warp& w, const Op& op, const Loaded& from, u32 mask) {
    for (int k = 0; k < op.count; ++k) {
        Ref dst = op.list[k];
        u32 offset = static_cast<u32>(k) * op.bytes;
        if (op.access.wide >> k & 1) {
            scatter_width(w.cells<u64>(dst), from, op, offset, mask);
        } else {
            u32* d = w.cells<u32>(dst);
            scatter_width(d, from, op, offset, mask);
            if (op.access.narrow >> k & 1) for_lanes(mask, [&](int i) { d[i] &= 0xffff; });
        }
        u32& known = w.defined(dst);
        known = (known & ~mask) | (from.defined[k] & mask);
    }
}

void load_global(Warp& w, const Op& op, const LaneAddresses& addresses, u32 mask) {
    Loaded from;
    u32 bytes = static_cast<u32>(op.bytes) * op.count;
    std::fill(from.defined, from.defined + op.count, kFull);
    GlobalAccess access = op.access.flags & kStrong        ? GlobalAccess::StrongRead
                          : op.access.flags & kNonCoherent ? GlobalAccess::ReadNonCoherent
                                                           : GlobalAccess::Read;
    for_lanes(mask, [&](int i) {
        Allocation* a;
        check_alignment(w, i, addresses.at[i], bytes, "global load");
        from.bytes[i] = global_pointer(w, i, addresses.at[i], bytes, false, a);
        if (!a) return;
        check_global_race(w, i, *a, addresses.at[i], bytes, access);
        if (!a->defined) return;
        const u8* known = a->defined + (addresses.at[i] - a->base);
        for (u32 b = 0; b < bytes; ++b)
            if (!known[b]) from.defined[b / op.bytes] &= ~(1u << i);
    });
    count_sectors(w.cta->profile[w.current_pc()], addresses.at, mask, bytes);
    store_elements(w, op, from, mask);
    // After the value was read: what it tells of had been released before it was written.
    if (!(op.access.flags & kStrong)) return;
    for (u32 left = mask; left;) {
        u64 address = addresses.at[__builtin_ctz(left)];
        u32 same = 0;
        for_lanes(left, [&](int i) { same |= addresses.at[i] == address ? 1u << i : 0; });
        acquire_global(w, same, address);
        left &= ~same;
    }
    ++w.cta->polls;
}

void load_shared(Warp& w, const Op& op, const LaneAddresses& addresses, u32 mask) {
    Loaded from;
    u32 bytes = static_cast<u32>(op.bytes) * op.count, offsets[kLanes];
    std::fill(from.defined, from.defined + op.count, kFull);
    for_lanes(mask, [&](int i) {
        check_alignment(w, i, addresses.at[i], bytes, "shared load");
        SharedPlace place = reach_shared(w, op, i, addresses.at[i], bytes);
        from.bytes[i] = place.cta->shared.data() + place.offset;
        offsets[i] = place.offset;
        if (place.cta != w.cta) return load_remote(w, op, i, place, bytes, from.defined);
        if (op.access.flags & kStrong ? w.cta->shadow.atomic(w, i, offsets[i], bytes)
                                      : w.cta->shadow.read(w, i, offsets[i], bytes))
            return;
        for (int k = 0; k < op.count; ++k)
            if (!w.cta->shadow.read(w, i, offsets[i] + static_cast<u32>(k) * op.bytes, op.bytes))
                from.defined[k] &= ~(1u << i);
    });
    count_wavefronts(w.cta->profile[w.current_pc()], offsets, mask, bytes);
    store_elements(w, op, from, mask);
    if (!(op.access.flags & kStrong)) return;
    for_lanes(mask, [&](int i) { acquire_place(w, i, reach_shared(w, op, i, addresses.at[i], bytes)); });
}

void load_local(Warp& w, const Op& op, const LaneAddresses& addresses, u32 mask) {
    Loaded from;
    u32 bytes = static_cast<u32>(op.bytes) * op.count;
    std::fill(from.defined, from.defined + op.count, kFull);
    for_lanes(mask, [&](int i) {
        u8* known;
        check_alignment(w, i, addresses.at[i], bytes, "local load");
        from.bytes[i] = local_pointer(w, i, addresses.at[i], bytes, known);
        for (u32 b = 0; b < bytes; ++b)
            if (!known[b]) from.defined[b / op.bytes] &= ~(1u << i);
    });
    store_elements(w, op, from, mask);
}

void load_param(Warp& w, const Op& op, const LaneAddresses& addresses, u32 mask) {
    Loaded from;
    u32 bytes = static_cast<u32>(op.bytes) * op.count;
    const std::vector<u8>& params = w.cta->launch->params;
    std::fill(from.defined, from.defined + op.count, kFull);
    for_lanes(mask, [&](int i) {
        check_alignment(w, i, addresses.at[i], bytes, "parameter load");
        if (addresses.at[i] + bytes > params.size()) {
            w.fail(ErrorKind::OutOfBounds,
                   "Read of " + std::to_string(bytes) + " bytes at parameter offset " + hex(addresses.at[i]) + " of " +
                       std::to_string(params.size()) + ".",
                   i);
        }
        from.bytes[i] = params.data() + addresses.at[i];
        for (u32 map : w.cta->launch->map_params) check_opaque(w, i, addresses.at[i], bytes, map);
    });
    store_elements(w, op, from, mask);
}

void load_from(Warp& w, const Op& op, Space space, const LaneAddresses& addresses, u32 mask) {
    switch (space) {
        case Space::Shared: return load_shared(w, op, addresses, mask);
        case Space::Local: return load_local(w, op, addresses, mask);
        case Space::Param: return load_param(w, op, addresses, mask);
        default: return load_global(w, op, addresses, mask);
    }
}

void op_load(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    if (op.space == Space::None)
        return by_window(w, addresses, [&](Space s, u32 mask) { load_from(w, op, s, addresses, mask); });
    load_from(w, op, op.space, addresses, w.active);
}

// ---- stores ----

// The bytes each lane stores, and which lanes' element k is defined.
struct Stored {
    alignas(16) u8 bytes[kLanes][32];
    u32 defined[kMaxElements];
    u32 all_defined = kFull;
};

void gather_elements(Warp& w, const Op& op, Stored& out, u32 mask) {
    for (int k = 0; k < op.count; ++k) {
        Ref src = op.list[k];
        u32 offset = static_cast<u32>(k) * op.bytes;
        if (op.access.wide >> k & 1) {
            const u64* s = w.cells<u64>(src);
            for_lanes(mask, [&](int i) { std::memcpy(out.bytes[i] + offset, s + i, op.bytes); });
        } else {
            const u32* s = w.cells<u32>(src);
            for_lanes(mask, [&](int i) { std::memcpy(out.bytes[i] + offset, s + i, op.bytes); });
        }
        out.defined[k] = w.defined(src);
        out.all_defined &= out.defined[k];
    }
}

Scope release_scope(const Op& op) {
    return op.access.flags & kRelease ? Scope::Grid : op.access.flags & kCtaRelease ? Scope::Cta : Scope::None;
}

void store_global(Warp& w, const Op& op, const LaneAddresses& addresses, const Stored& values, u32 mask) {
    u32 bytes = static_cast<u32>(op.bytes) * op.count;
    u32 undefined = mask & ~values.all_defined;
    if (undefined && w.cta->checks(kCheckUndefined)) {
        int lane = __builtin_ctz(undefined);
        throw SimError(ErrorKind::Undefined, "An undefined value is stored to global memory.")
            .at_lane(lane)
            .at_address(addresses.at[lane]);
    }
    bool strong = op.access.flags & kStrong;
    for_lanes(mask, [&](int i) {
        Allocation* a;
        u64 address = addresses.at[i];
        check_alignment(w, i, address, bytes, "global store");
        u8* p = global_pointer(w, i, address, bytes, true, a);
        if (a) {
            check_global_race(w, i, *a, address, bytes, strong ? GlobalAccess::Atomic : GlobalAccess::Write,
                              values.bytes[i]);
            if (strong) release_global(w, address, release_scope(op));
            if (a->defined) std::memset(a->defined + (address - a->base), 1, bytes);
        }
        std::memcpy(p, values.bytes[i], bytes);
    });
    count_sectors(w.cta->profile[w.current_pc()], addresses.at, mask, bytes);
}

void store_shared(Warp& w, const Op& op, const LaneAddresses& addresses, const Stored& values, u32 mask) {
    u32 bytes = static_cast<u32>(op.bytes) * op.count, offsets[kLanes];
    SharedShadow& shadow = w.cta->shadow;
    for_lanes(mask, [&](int i) {
        check_alignment(w, i, addresses.at[i], bytes, "shared store");
        SharedPlace place = reach_shared(w, op, i, addresses.at[i], bytes);
        u8* p = place.cta->shared.data() + place.offset;
        u32 at = offsets[i] = place.offset;
        if (place.cta != w.cta) {
            store_remote(w, op, i, place, bytes, lane_in(values.all_defined, i), release_scope(op));
        } else if (op.access.flags & kStrong) {
            shadow.atomic_store(w, i, at, bytes, lane_in(values.all_defined, i));
            release_shared(w, at, release_scope(op));
        } else if (lane_in(values.all_defined, i)) {
            shadow.write(w, i, at, bytes, true, values.bytes[i]);
        } else {
            for (int k = 0; k < op.count; ++k)
                shadow.write(w, i, at + static_cast<u32>(k) * op.bytes, op.bytes, lane_in(values.defined[k], i),
                             nullptr);
        }
        std::memcpy(p, values.bytes[i], bytes);
    });
    count_wavefronts(w.cta->profile[w.current_pc()], offsets, mask, bytes);
}

void store_local(Warp& w, const Op& op, const LaneAddresses& addresses, const Stored& values, u32 mask) {
    u32 bytes = static_cast<u32>(op.bytes) * op.count;
    for_lanes(mask, [&](int i) {
        u8* known;
        check_alignment(w, i, addresses.at[i], bytes, "local store");
        u8* p = local_pointer(w, i, addresses.at[i], bytes, known);
        std::memcpy(p, values.bytes[i], bytes);
        for (u32 b = 0; b < bytes; ++b) known[b] = lane_in(values.defined[b / op.bytes], i);
    });
}

void store_to(Warp& w, const Op& op, Space space, const LaneAddresses& addresses, const Stored& values, u32 mask) {
    switch (space) {
        case Space::Shared: return store_shared(w, op, addresses, values, mask);
        case Space::Local: return store_local(w, op, addresses, values, mask);
        case Space::Param: w.fail(ErrorKind::OutOfBounds, "A kernel's parameters are read-only.");
        default: return store_global(w, op, addresses, values, mask);
    }
}

void op_store(Warp& w, const Op& op) {
    LaneAddresses addresses;
    Stored values;
    gather_addresses(w, op, addresses);
    gather_elements(w, op, values, w.active);
    if (op.space == Space::None)
        return by_window(w, addresses, [&](Space s, u32 mask) { store_to(w, op, s, addresses, values, mask); });
    store_to(w, op, op.space, addresses, values, w.active);
}

// ---- decoding ----

Space take_space(Form& f) {
    std::string s = f.take_any({"global", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry",
                                "param::func", "const"});
    if (s == "global" || s == "const") return Space::Global;
    if (s.rfind("shared", 0) == 0) return Space::Shared;
    if (s == "local") return Space::Local;
    return s.empty() ? Space::None : Space::Param;
}

// .weak, .volatile, .relaxed, .acquire, .release with a scope (8.4-8.5): in one process the scopes coincide.
// volatile counts as strong on global memory; on shared memory CUDA promises no order for it, so it races like any
// other.
u8 take_semantics(Form& f) {
    u8 flags = 0;
    f.take("weak");
    if (f.take("volatile")) flags |= kVolatile;
    if (!f.take_any({"relaxed", "mmio"}).empty()) flags |= kStrong;
    if (f.take("acquire")) flags |= kStrong | kAcquire;
    bool releases = f.take("release");
    if (releases) flags |= kStrong;
    bool wide = f.take_any({"gpu", "sys", "cta", "cluster"}) != "cta";
    if (releases) flags |= wide ? kRelease : kCtaRelease;
    return flags;
}

void set_memory_operands(Form& f, Op& op, const Address& address, const std::vector<const Operand*>& elements,
                         const std::vector<u32>& refs) {
    Decoder& d = f.decoder;
    set_address(op, address);
    if (f.inst.has("shared::cluster")) op.addressing |= kClusterWindow;
    op.list = d.list(refs);
    op.count = static_cast<u8>(refs.size());
    for (size_t k = 0; k < elements.size(); ++k) {
        int bytes = elements[k]->kind == Operand::kReg    ? d.operand_bytes(*elements[k])
                    : elements[k]->kind == Operand::kSink ? std::max<int>(op.bytes, 4)
                                                          : op.bytes;
        if (bytes == 8) op.access.wide |= static_cast<u8>(1u << k);
        if (bytes == 2) op.access.narrow |= static_cast<u8>(1u << k);
    }
}

std::vector<const Operand*> elements_of(const Operand& operand) {
    std::vector<const Operand*> out;
    if (operand.kind != Operand::kVector) return {&operand};
    for (const Operand& item : operand.items) out.push_back(&item);
    return out;
}

OpClass memory_class(Space space, bool load) {
    switch (space) {
        case Space::Shared: return load ? OpClass::LoadShared : OpClass::StoreShared;
        case Space::Local: return OpClass::LocalMemory;
        case Space::Param: return OpClass::ParamMemory;
        default: return load ? OpClass::LoadGlobal : OpClass::StoreGlobal;
    }
}

struct Head {
    Space space;
    u8 flags;
    std::string type;
};

Head take_head(Form& f) {
    Head head;
    head.space = take_space(f);
    head.flags = take_semantics(f);
    if (f.take("nc")) head.flags |= kNonCoherent;
    f.take_cache_hints();
    f.take_any({"v2", "v4", "v8"});
    head.type = f.take_type();
    f.take("unified");
    if ((head.flags & kVolatile) && head.space != Space::Shared) head.flags |= kStrong;
    if (head.type[0] == 's') head.flags |= kSigned;
    if (type_size(head.type) > 8) f.unsupported("128-bit elements");
    return head;
}

void decode_load(Form& f) {
    Decoder& d = f.decoder;
    Head head = take_head(f);
    int bytes = type_size(head.type);
    std::vector<const Operand*> elements = elements_of(f.at(0));
    if (elements.size() > kMaxElements || bytes * elements.size() > 32) f.unsupported("vector of that size");
    std::vector<u32> refs;
    for (const Operand* e : elements)
        refs.push_back(d.dest(*e, e->kind == Operand::kReg ? d.operand_bytes(*e) : bytes));
    Address address = d.address(f.at(1), head.space);
    Op& op = d.emit(op_load, memory_class(address.framed ? Space::Local : head.space, true));
    op.bytes = static_cast<u8>(bytes);
    op.access = {head.flags, 0, 0};
    set_memory_operands(f, op, address, elements, refs);
}

void decode_store(Form& f) {
    if (f.inst.has("async")) return decode_async_store(f);
    Decoder& d = f.decoder;
    Head head = take_head(f);
    int bytes = type_size(head.type);
    std::vector<const Operand*> elements = elements_of(f.at(1));
    if (elements.size() > kMaxElements || bytes * elements.size() > 32) f.unsupported("vector of that size");
    std::vector<u32> refs;
    for (const Operand* e : elements)
        refs.push_back(e->kind == Operand::kReg ? d.source(*e, d.operand_bytes(*e)) : d.source(*e, head.type));
    Address address = d.address(f.at(0), head.space);
    Op& op = d.emit(op_store, memory_class(address.framed ? Space::Local : head.space, false));
    op.bytes = static_cast<u8>(bytes);
    op.access = {head.flags, 0, 0};
    set_memory_operands(f, op, address, elements, refs);
}

}  // namespace

void add_memory_families(FamilyTable& t) {
    t["ld"] = decode_load;
    t["ldu"] = decode_load;
    t["st"] = decode_store;
}

}  // namespace ptxsim
