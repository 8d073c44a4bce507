// cp.async.bulk.tensor, cp.reduce.async.bulk.tensor, cp.async.bulk.prefetch.tensor (PTX ISA 9.7.9.27) and
// prefetch.tensormap. Boxes in tile mode; im2col and the gathering modes of later architectures stop.
#include "atomic.h"
#include "bulk_decode.h"
#include "control.h"
#include "lanes.h"

namespace ptxsim {

namespace {

constexpr u32 kTileAlign = 128;

// A map lies in the kernel's parameters, or in constant or global memory.
TensorMap load_map(Warp& w, int lane, u64 address) {
    u64 at = address;
    const u8* bytes = nullptr;
    Space space = resolve_generic(at);
    if (at % kTensorMapAlign)
        w.fail(ErrorKind::Misaligned, "The address " + hex(address) + " of a tensor map is no multiple of 64.", lane);
    if (space == Space::Param) {
        const std::vector<u8>& params = w.cta->launch->params;
        if (at + kTensorMapBytes > params.size())
            w.fail(ErrorKind::OutOfBounds,
                   "A tensor map at parameter offset " + hex(at) + " of " + std::to_string(params.size()) + " bytes.",
                   lane);
        bytes = params.data() + at;
    } else if (space == Space::Global) {
        Allocation* a;
        bytes = global_pointer(w, lane, at, kTensorMapBytes, false, a);
    } else {
        w.fail(ErrorKind::BadProgram,
               "A tensor map in shared or local memory: only parameters, constant and global memory hold maps.", lane);
    }
    TensorMap map;
    if (!read_tensor_map(bytes, map))
        w.fail(ErrorKind::BadProgram,
               "There is no tensor map at " + hex(address) + ": these bytes are not what cuTensorMapEncodeTiled wrote.",
               lane);
    return map;
}

// Layouts in shared memory that no document describes stop.
Box box_at(Warp& w, const Op& op, int lane, u64 address) {
    TensorMap map = load_map(w, lane, address);
    if (map.rank != op.bulk.rank)
        w.fail(ErrorKind::BadProgram,
               "A copy of a " + std::to_string(op.bulk.rank) + "-D tensor with a map of rank " +
                   std::to_string(map.rank) + ".",
               lane);
    if (map.interleave)
        w.fail(ErrorKind::Unsupported, "A tensor map with an interleaved layout is not supported.", lane);
    const u32* coordinate = op.list + kPackedAddress * op.bulk.addresses;
    s32 at[kMaxRank] = {};
    for (u32 d = 0; d < op.bulk.rank; ++d) {
        w.require_defined(w.defined(coordinate[d]), "a coordinate of a tensor copy");
        at[d] = static_cast<s32>(w.cells<u32>(coordinate[d])[lane]);
    }
    Box box = tile_box(map, at);
    if (box.swizzle && box.row_bytes != 16u << box.swizzle)
        w.fail(ErrorKind::Unsupported,
               "A box whose rows of " + std::to_string(box.row_bytes) +
                   " bytes do not fill the span of its swizzle is not supported.",
               lane);
    return box;
}

// Do two lanes give the same coordinates?
bool same_place(Warp& w, const Op& op, int lane, int other) {
    const u32* coordinate = op.list + kPackedAddress * op.bulk.addresses;
    for (u32 d = 0; d < op.bulk.rank; ++d) {
        const u32* cells = w.cells<u32>(coordinate[d]);
        if (cells[lane] != cells[other]) return false;
    }
    return true;
}

void op_tensor_load(Warp& w, const Op& op) {
    LaneAddresses maps, to, barrier;
    gather_packed(w, op, 0, maps);
    gather_packed(w, op, 1, to);
    gather_packed(w, op, 2, barrier);
    for_lanes(w.active, [&](int i) {
        Box box = box_at(w, op, i, maps.at[i]);
        w.cta->counters->bulk_global_bytes += box.global_bytes();
        each_destination(w, op, i, to.at[i], barrier.at[i], box.bytes(), kTileAlign,
                         [&](SharedPlace place, SharedPlace signal) { start_load(w, i, box, place, signal); });
    });
}

void op_tensor_store(Warp& w, const Op& op) {
    LaneAddresses maps, from;
    gather_packed(w, op, 0, maps);
    gather_packed(w, op, 1, from);
    for_lanes(w.active, [&](int i) {
        Box box = box_at(w, op, i, maps.at[i]);
        SharedPlace source = bulk_place(w, i, from.at[i], box.bytes(), kTileAlign, "source of a tensor copy");
        if (source.cta != w.cta)
            w.fail(ErrorKind::OutOfBounds, "The source of a tensor copy is in another CTA's shared memory.", i);
        Reduction named{op.bulk.reduces, op.bulk.operation, 0, 0};
        bool again = asked_before(w, i, [&](int j) {
            return maps.at[i] == maps.at[j] && from.at[i] == from.at[j] && same_place(w, op, i, j);
        });
        start_store(w, i, box, source.offset, named.on ? reduction_of_map(w, i, named, box.type) : named, again);
    });
}

void op_tensor_prefetch(Warp& w, const Op& op) {
    LaneAddresses maps;
    gather_packed(w, op, 0, maps);
    for_lanes(w.active, [&](int i) { box_at(w, op, i, maps.at[i]); });
}

void op_prefetch_map(Warp& w, const Op& op) {
    LaneAddresses maps;
    gather_packed(w, op, 0, maps);
    for_lanes(w.active, [&](int i) { load_map(w, i, maps.at[i]); });
}

// [map, {coordinates}]
Address map_address(Form& f, const Operand& operand, std::vector<u32>& coordinates, u32 rank) {
    if (operand.kind != Operand::kAddress || operand.items.size() != 2) f.unsupported("its tensor operand");
    Operand map = operand;
    map.items.resize(1);
    const Operand& vector = operand.items[1];
    size_t count = vector.kind == Operand::kVector ? vector.items.size() : 1;
    if (count != rank) f.unsupported("the number of its coordinates");
    if (vector.kind != Operand::kVector) coordinates.push_back(f.decoder.source(vector, 4));
    else
        for (const Operand& item : vector.items) coordinates.push_back(f.decoder.source(item, 4));
    return f.decoder.address(map, Space::None);
}

}  // namespace

Reduction reduction_of_map(Warp& w, int lane, const Reduction& named, TensorType type) {
    static const char* types[] = {"", "", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16", "f32", "f32", "f32"};
    Reduction r = named;
    int index = reduction_type(types[static_cast<int>(type)]);
    bool bitwise = named.operation >= static_cast<u8>(reduction_operation("and"));
    bool floating = type >= TensorType::F16, half = type == TensorType::F16 || type == TensorType::BF16;
    bool fits =
        !floating || named.operation == 0 || (half && named.operation <= static_cast<u8>(reduction_operation("max")));
    if (index < 0 || !fits || (floating && bitwise))
        w.fail(ErrorKind::BadProgram, "A reduction that tensors of the map's type do not have.", lane);
    r.type = static_cast<u8>(index);
    r.bytes = static_cast<u8>(tensor_type_bytes(type));
    return r;
}

void decode_tensor_copy(Form& f, bool reduces, bool prefetches) {
    Decoder& d = f.decoder;
    std::string dimensions = f.take_any({"1d", "2d", "3d", "4d", "5d"});
    if (dimensions.empty()) f.unsupported("its dimensions");
    u32 rank = static_cast<u32>(dimensions[0] - '0');
    for (const std::string& mod : f.left)
        if (mod.rfind("im2col", 0) == 0 || mod.rfind("tile::", 0) == 0) f.unsupported("mode ." + mod);
    f.take("tile");
    bool stores = f.inst.has("bulk_group");
    for (const char* part : {"shared::cluster", "shared::cta", "global", "bulk_group", "mbarrier::complete_tx::bytes"})
        f.take(part);
    if (prefetches && !f.take("L2")) f.unsupported();
    bool multicast = f.take("multicast::cluster");
    f.take_cache_hints();
    Reduction reduction = reduces ? take_reduction(f, false) : Reduction{};
    std::vector<u32> list, coordinates;
    size_t map_at = stores || prefetches ? 0 : 1;
    pack_address(list, map_address(f, f.at(map_at), coordinates, rank));
    if (stores) pack_address(list, d.address(f.at(1), Space::Shared));
    if (!stores && !prefetches) {
        pack_address(list, d.address(f.at(0), Space::Shared));
        pack_address(list, d.address(f.at(2), Space::Shared));
    }
    u8 addresses = static_cast<u8>(list.size() / kPackedAddress);
    list.insert(list.end(), coordinates.begin(), coordinates.end());
    Ref mask = multicast ? d.source(f.at(3), 2) : 0;
    Op& op = d.emit(prefetches ? op_tensor_prefetch : stores ? op_tensor_store : op_tensor_load, OpClass::BulkCopy);
    op.list = d.list(list);
    op.bulk = {addresses, static_cast<u8>(rank), multicast, reduces, reduction.operation, 0, 0};
    op.d = mask;
}

namespace {

// prefetch.tensormap; a prefetch of a line of memory changes nothing.
void decode_prefetch(Form& f) {
    if (!f.take("tensormap")) return f.left.clear();
    f.require_target(90);
    bool param = f.take("param");
    f.take("const");
    std::vector<u32> list;
    Address address = f.decoder.address(f.at(0), Space::None);
    if (param) address.offset |= static_cast<s64>(kParamWindow);
    pack_address(list, address);
    f.decoder.emit(op_prefetch_map, OpClass::BulkCopy).list = f.decoder.list(list);
}

}  // namespace

void add_tensor_families(FamilyTable& t) { t["prefetch"] = decode_prefetch; }

}  // namespace ptxsim
