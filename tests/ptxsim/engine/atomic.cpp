// atom and red (PTX ISA 9.7.13.10-11) on global and shared memory. Lanes take their turn in an order the seed chooses.
#include "atomic.h"

#include <mutex>

#include "access.h"
#include "async_store.h"
#include "cluster.h"
#include "cluster_shadow.h"
#include "control.h"
#include "counters.h"
#include "cta.h"
#include "fp.h"
#include "grid_barrier.h"
#include "lanes.h"
#include "parser.h"

namespace ptxsim {

namespace {

constexpr const char* kOperations[] = {"add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"};
enum Operation : u8 { kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor, kExch, kCas };

// One element's new value. T is the value's type; b is the operand, c the second operand of cas.
template <class T>
T updated(u8 operation, T old, T b, T c) {
    using U = std::make_unsigned_t<T>;
    switch (operation) {
        case kAdd: return static_cast<T>(static_cast<U>(old) + static_cast<U>(b));
        case kMin: return b < old ? b : old;
        case kMax: return old < b ? b : old;
        case kInc: return old >= b ? 0 : static_cast<T>(old + 1);             // "(a >= b) ? 0 : a+1"
        case kDec: return old == 0 || old > b ? b : static_cast<T>(old - 1);  // "(a == 0 || a > b) ? b : a-1"
        case kAnd: return old & b;
        case kOr: return old | b;
        case kXor: return old ^ b;
        case kExch: return b;
        default: return old == b ? c : old;
    }
}

template <class T>
u64 update_integer(u8 operation, u64 old, u64 b, u64 c) {
    return static_cast<std::make_unsigned_t<T>>(
        updated<T>(operation, static_cast<T>(old), static_cast<T>(b), static_cast<T>(c)));
}

u64 update_f32(u8, u64 old, u64 b, u64) {
    return bit_cast<u32>(canonical(bit_cast<float>(static_cast<u32>(old)) + bit_cast<float>(static_cast<u32>(b))));
}
// "atom.add.f32 on global memory flushes subnormal inputs and results to sign-preserving zero; on shared memory it does
// not."
u64 update_f32_flushed(u8, u64 old, u64 b, u64) {
    return bit_cast<u32>(
        canonical(flush(flush(bit_cast<float>(static_cast<u32>(old))) + flush(bit_cast<float>(static_cast<u32>(b))))));
}
u64 update_f64(u8, u64 old, u64 b, u64) { return bit_cast<u64>(bit_cast<double>(old) + bit_cast<double>(b)); }

template <class H>
u16 half_update(u8 operation, u16 old, u16 b) {
    float x = to_float(H{old}), y = to_float(H{b});
    if (operation == kMin || operation == kMax) {
        if (x != x) return y != y ? 0x7fff : b;
        if (y != y) return old;
        return (x < y) == (operation == kMin) ? old : b;
    }
    return std::is_same_v<H, Half> ? half_from_float(x + y) : bfloat_from_float(x + y);
}
template <class H, bool kPair>
u64 update_half(u8 operation, u64 old, u64 b, u64) {
    u32 low = half_update<H>(operation, static_cast<u16>(old), static_cast<u16>(b));
    return kPair ? static_cast<u64>(half_update<H>(operation, static_cast<u16>(old >> 16), static_cast<u16>(b >> 16)))
                           << 16 |
                       low
                 : low;
}

using Update = u64 (*)(u8, u64, u64, u64);
const Update kUpdates[] = {update_integer<u32>,
                           update_integer<s32>,
                           update_integer<u64>,
                           update_integer<s64>,
                           update_f32,
                           update_f64,
                           update_half<Half, false>,
                           update_half<Half, true>,
                           update_half<Bfloat, false>,
                           update_half<Bfloat, true>,
                           update_integer<u16>};

constexpr u32 kF32Index = 4;

int update_index(Form& f, const std::string& type) {
    int index = reduction_type(type);
    if (index < 0) f.unsupported("type ." + type);
    return index;
}

std::mutex& atomic_mutex(u64 address) {
    static std::mutex stripes[64];
    return stripes[(address >> 4) & 63];
}

// Makes the access legal and returns the bytes; `defined` tells whether the old value is.
u8* reach(Warp& w, const Op& op, Space space, int lane, u64 address, u32 bytes, bool& defined) {
    check_alignment(w, lane, address, op.bytes, "atomic");
    defined = true;
    if (space == Space::Shared) {
        SharedPlace place = reach_shared(w, op, lane, address, bytes);
        defined = place.cta == w.cta ? w.cta->shadow.atomic(w, lane, place.offset, bytes)
                                     : place.cta->remote->access(w, lane, place.offset, bytes, RemoteAccess::Atomic);
        return place.cta->shared.data() + place.offset;
    }
    if (space != Space::Global) w.fail(ErrorKind::Unsupported, "An atomic on local or parameter memory.", lane);
    Allocation* a;
    u8* p = global_pointer(w, lane, address, bytes, true, a);
    if (!a) return p;
    check_global_race(w, lane, *a, address, bytes, GlobalAccess::Atomic);
    if (!a->defined) return p;
    u8* known = a->defined + (address - a->base);
    for (u32 i = 0; i < bytes; ++i) defined &= known[i] != 0;
    if (op.atomic.operation == kExch) std::memset(known, 1, bytes);
    return p;
}

u64 operand(Warp& w, const Op& op, Ref ref, int lane) {
    return op.bytes == 8 ? w.cells<u64>(ref)[lane] : w.cells<u32>(ref)[lane];
}

u32 known_operands(Warp& w, const Op& op) {
    u32 known = w.defined(op.b) & (op.atomic.operation == kCas ? w.defined(op.c) : kFull);
    for (int k = 0; k < op.count; ++k) known &= w.defined(op.list[k]);
    return known;
}

void require_operands(Warp& w, const Op& op, Space space) {
    if (space == Space::Global) w.require_defined(known_operands(w, op), "an atomic on global memory");
}

// An atomic reads and then writes; a cas that fails writes nothing, so it publishes nothing.
void order_atomic(Warp& w, const Op& op, Space space, int lane, u64 address, u64 old) {
    u64 differs = (old ^ operand(w, op, op.b, lane)) << (64 - 8 * op.bytes);
    bool writes = op.atomic.operation != kCas || differs == 0;
    Scope scope = op.atomic.release;
    if (space == Space::Global) {
        acquire_global(w, 1u << lane, address);
        if (writes) release_global(w, address, scope);
    } else {
        SharedPlace place = reach_shared(w, op, lane, address, op.bytes);
        acquire_place(w, lane, place);
        if (writes) release_place(w, place, scope);
    }
}

void update_lane(Warp& w, const Op& op, Space space, int lane, u64 address) {
    bool defined;
    u32 bytes = op.bytes;
    u8* p = reach(w, op, space, lane, address, bytes, defined);
    u64 old = 0;
    if (space == Space::Global) w.cta->counters->atomic_bytes += bytes;
    {
        std::unique_lock<std::mutex> lock(atomic_mutex(address), std::defer_lock);
        if (space == Space::Global) lock.lock();
        std::memcpy(&old, p, bytes);
        Update update =
            op.atomic.type == kF32Index && space == Space::Global ? update_f32_flushed : kUpdates[op.atomic.type];
        u64 next = update(op.atomic.operation, old, operand(w, op, op.b, lane), operand(w, op, op.c, lane));
        order_atomic(w, op, space, lane, address, old);
        if (space == Space::Global) arrive_at_grid_barrier(*w.cta, address, old, next);
        std::memcpy(p, &next, bytes);
    }
    if (space == Space::Shared) {
        bool operands = lane_in(known_operands(w, op), lane);
        SharedPlace place = reach_shared(w, op, lane, address, bytes);
        place.cta->shadow.define(place.offset, bytes, operands && (defined || op.atomic.operation == kExch));
    }
    if (!op.has_result) return;  // red
    if (bytes == 8) w.cells<u64>(op.dst)[lane] = old;
    else w.cells<u32>(op.dst)[lane] = static_cast<u32>(old);
    u32& known = w.defined(op.dst);
    known = defined ? known | 1u << lane : known & ~(1u << lane);
}

void op_atomic(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    u32 left = w.active, offsets[kLanes] = {};
    Space common = op.space;
    while (left) {
        u32 skip = w.random.below(static_cast<u32>(popcount(left)));
        u32 rest = left;
        while (skip--) rest &= rest - 1;
        int lane = __builtin_ctz(rest);
        left &= ~(1u << lane);
        Space space = op.space;
        if (space == Space::None) space = resolve_generic(addresses.at[lane]);
        common = space;
        require_operands(w, op, space);
        offsets[lane] = static_cast<u32>(addresses.at[lane]);
        update_lane(w, op, space, lane, addresses.at[lane]);
    }
    if (common == Space::Shared) count_wavefronts(w.cta->profile[w.current_pc()], offsets, w.active, op.bytes);
    else count_sectors(w.cta->profile[w.current_pc()], addresses.at, w.active, op.bytes);
}

// red and atom.global.add.v2.f32 and friends (sm_90): element by element, each atomic on its own. op.list holds the
// operands, then the results.
void op_atomic_vector(Warp& w, const Op& op) {
    LaneAddresses addresses;
    gather_addresses(w, op, addresses);
    require_operands(w, op, Space::Global);
    for_lanes(w.active, [&](int lane) {
        check_alignment(w, lane, addresses.at[lane], static_cast<u32>(op.bytes) * op.count, "vector reduction");
        for (int k = 0; k < op.count; ++k) {
            Op one = op;
            one.b = op.list[k];
            one.count = 0;
            if (op.has_result) one.dst = op.list[op.count + k];
            update_lane(w, one, Space::Global, lane, addresses.at[lane] + static_cast<u64>(k) * op.bytes);
        }
    });
    count_sectors(w.cta->profile[w.current_pc()], addresses.at, w.active, static_cast<u32>(op.bytes) * op.count);
}

u8 take_operation(Form& f) {
    for (u8 k = 0; k < 10; ++k)
        if (f.take(kOperations[k])) return k;
    f.unsupported();
}

void check_type(Form& f, u8 operation, const std::string& type) {
    bool real = type == "f32" || type == "f64";
    bool half = type.find("f16") != std::string::npos;
    if (real && operation != kAdd) f.unsupported("this operation on ." + type);
    if (half && operation > kMax) f.unsupported("this operation on ." + type);
}

void decode_atomic(Form& f) {
    if (f.inst.has("async")) return decode_async_reduction(f);
    Decoder& d = f.decoder;
    bool reduce = f.inst.opcode == "red";
    std::string order = f.take_any({"relaxed", "acquire", "release", "acq_rel"});
    std::string scope = f.take_any({"gpu", "sys", "cta", "cluster"});
    Scope release = order != "release" && order != "acq_rel" ? Scope::None : scope == "cta" ? Scope::Cta : Scope::Grid;
    std::string where = f.take_any({"global", "shared", "shared::cta", "shared::cluster"});
    u8 operation = take_operation(f);
    f.take_any({"noftz"});
    f.take_cache_hints();
    bool vector = !f.take_any({"v2", "v4", "v8"}).empty();
    std::string type = f.take_type();
    check_type(f, operation, type);
    int bytes = type_size(type);
    size_t at = reduce ? 0 : 1;
    if (vector) f.require_target(90);
    if (vector && where != "global") f.unsupported("vectors outside .global");
    Address address = d.address(f.at(at), where == "global" ? Space::Global
                                          : where.empty()   ? Space::None
                                                            : Space::Shared);
    std::vector<u32> elements;
    if (vector)
        for (const Operand& e : f.at(at + 1).items) elements.push_back(d.source(e, type));
    size_t count = elements.size();
    if (vector && !reduce)
        for (const Operand& e : f.at(0).items) elements.push_back(d.dest(e, bytes));
    if (vector && !reduce && elements.size() != 2 * count) f.unsupported("number of results");
    Ref b = vector ? elements[0] : d.source(f.at(at + 1), type),
        c = operation == kCas ? d.source(f.at(at + 2), type) : b;
    Op& op = d.emit(vector ? op_atomic_vector : op_atomic, OpClass::Atomic);
    set_address(op, address);
    if (where == "shared::cluster") op.addressing |= kClusterWindow;
    op.b = b;
    op.c = c;
    op.bytes = static_cast<u8>(bytes);
    op.atomic = {operation, static_cast<u8>(update_index(f, type)), release};
    op.has_result = !reduce;
    if (vector) {
        op.list = d.list(elements);
        op.count = static_cast<u8>(count);
    }
    if (!reduce && !vector) op.dst = d.dest(f.at(0), bytes);
}

}  // namespace

int reduction_operation(const std::string& name) {
    for (int k = 0; k <= kXor; ++k)
        if (name == kOperations[k]) return k;
    return -1;
}

int reduction_type(const std::string& name) {
    static const std::pair<const char*, int> types[] = {
        {"u32", 0}, {"b32", 0}, {"s32", 1},   {"u64", 2},  {"b64", 2},    {"s64", 3},  {"f32", 4},
        {"f64", 5}, {"f16", 6}, {"f16x2", 7}, {"bf16", 8}, {"bf16x2", 9}, {"b16", 10}, {"u16", 10}};
    for (const auto& [type, index] : types)
        if (name == type) return index;
    return -1;
}

void reduce(u8 operation, u8 type, u8* to, const u8* value, u32 bytes) {
    u64 old = 0, operand = 0;
    std::memcpy(&old, to, bytes);
    std::memcpy(&operand, value, bytes);
    u64 next = kUpdates[type](operation, old, operand, operand);
    std::memcpy(to, &next, bytes);
}

void reduce_global(u8 operation, u8 type, u64 address, const u8* value, u32 bytes) {
    std::lock_guard<std::mutex> lock(atomic_mutex(address));
    reduce(operation, type, reinterpret_cast<u8*>(address), value, bytes);
}

void add_atomic_families(FamilyTable& t) {
    t["atom"] = decode_atomic;
    t["red"] = decode_atomic;
}

}  // namespace ptxsim
