// Exchange within a warp (PTX ISA 9.7.9.6 shfl, 9.7.13.5 vote, .6 match, .7 activemask, .8 redux; 9.7.13.9 elect).
#include "control.h"
#include "cta.h"
#include "lanes.h"
#include "warp_sync.h"

namespace ptxsim {

namespace {

enum ShuffleMode : u8 { kUp, kDown, kButterfly, kIndex };

// The source lane of shfl, or the lane itself when out of the segment (p = false). c packs clamp (4..0) and segment
// mask (12..8).
int shuffle_source(u8 mode, int lane, u32 b, u32 c, bool& in_range) {
    int bval = static_cast<int>(b & 31), cval = static_cast<int>(c & 31), mask = static_cast<int>((c >> 8) & 31);
    int max_lane = (lane & mask) | (cval & ~mask), min_lane = lane & mask, j = 0;
    switch (mode) {
        case kUp:
            j = lane - bval;
            in_range = j >= max_lane;
            break;
        case kDown:
            j = lane + bval;
            in_range = j <= max_lane;
            break;
        case kButterfly:
            j = lane ^ bval;
            in_range = j <= max_lane;
            break;
        default:
            j = min_lane | (bval & ~mask);
            in_range = j <= max_lane;
            break;
    }
    return in_range ? j : lane;
}

void op_shfl(Warp& w, const Op& op) {
    for_mask_groups(w, op.d, [&] {
        const u32 *a = w.cells<u32>(op.a), *b = w.cells<u32>(op.b), *c = w.cells<u32>(op.c);
        u32 known_in = w.defined(op.a), known = 0, ranges = 0, t[kLanes];
        w.require_defined(w.defined(op.b) & w.defined(op.c), "the lane operand of shfl");
        for (int i = 0; i < kLanes; ++i) {
            bool in_range = false;
            int source = shuffle_source(op.mode, i, b[i], c[i], in_range);
            t[i] = a[source];
            ranges |= static_cast<u32>(in_range) << i;
            // "the source thread is inactive: the value is undefined"
            known |= static_cast<u32>(lane_in(known_in & w.active, source)) << i;
        }
        blend(w.cells<u32>(op.dst), t, w.active);
        w.define(op.dst, known);
        if (op.to_p >= 0) w.set_predicate(op.to_p, ranges, kFull);
        order_active_lanes(w);
    });
}

void decode_shfl(Form& f) {
    Decoder& d = f.decoder;
    if (!f.take("sync")) f.unsupported("shfl without .sync");
    std::string mode = f.take_any({"up", "down", "bfly", "idx"});
    f.take_type();
    bool pair = f.at(0).kind == Operand::kPair;
    Ref a = d.source(f.at(1), 4), b = d.source(f.at(2), 4), c = d.source(f.at(3), 4), mask = d.source(f.at(4), 4);
    Op& op = d.emit(op_shfl, OpClass::WarpSync);
    op.a = a;
    op.b = b;
    op.c = c;
    op.d = mask;
    op.mode = mode == "up" ? kUp : mode == "down" ? kDown : mode == "bfly" ? kButterfly : kIndex;
    op.dst = d.dest(pair ? f.at(0).items[0] : f.at(0), 4);
    if (pair) op.to_p = d.predicate_dest(f.at(0).items[1]);
}

enum VoteMode : u8 { kAll, kAny, kUniform, kBallot };

void op_vote(Warp& w, const Op& op) {
    for_mask_groups(w, op.d, [&] {
        w.require_defined(w.predicates_defined[op.p], "the predicate of vote");
        u32 p = w.predicates[op.p] & w.active;
        if (op.mode == kBallot) {
            for_lanes(w.active, [&](int i) { w.cells<u32>(op.dst)[i] = p; });
            w.define(op.dst, kFull);
        } else {
            bool result = op.mode == kAll ? p == w.active : op.mode == kAny ? p != 0 : p == 0 || p == w.active;
            w.set_predicate(op.to_p, result ? kFull : 0, kFull);
        }
        order_active_lanes(w);
    });
}

void decode_vote(Form& f) {
    Decoder& d = f.decoder;
    if (!f.take("sync")) f.unsupported("vote without .sync");
    std::string mode = f.take_any({"all", "any", "uni", "ballot"});
    f.take_type();
    int p = d.predicate(f.at(1));
    Ref mask = d.source(f.at(2), 4);
    Op& op = d.emit(op_vote, OpClass::WarpSync);
    op.p = p;
    op.d = mask;
    op.mode = mode == "all" ? kAll : mode == "any" ? kAny : mode == "uni" ? kUniform : kBallot;
    if (op.mode == kBallot) op.dst = d.dest(f.at(0), 4);
    else op.to_p = d.predicate_dest(f.at(0));
}

enum MatchMode : u8 { kMatchAny, kMatchAll };

// match.any: the lanes with this lane's value; match.all: the mask if all agree, else 0.
template <class T>
void op_match(Warp& w, const Op& op) {
    for_mask_groups(w, op.d, [&] {
        const T* a = w.cells<T>(op.a);
        w.require_defined(w.defined(op.a), "the operand of match");
        u32 t[kLanes] = {}, first = static_cast<u32>(__builtin_ctz(w.active));
        bool all = true;
        for_lanes(w.active, [&](int i) {
            for_lanes(w.active, [&](int j) { t[i] |= static_cast<u32>(a[i] == a[j]) << j; });
            all &= a[i] == a[first];
        });
        if (op.mode == kMatchAll) std::fill(t, t + kLanes, all ? w.active : 0);
        blend(w.cells<u32>(op.dst), t, w.active);
        w.define(op.dst, kFull);
        if (op.to_p >= 0) w.set_predicate(op.to_p, all ? kFull : 0, kFull);
        order_active_lanes(w);
    });
}

void decode_match(Form& f) {
    Decoder& d = f.decoder;
    bool all = f.take_any({"all", "any"}) == "all";
    if (!f.take("sync")) f.unsupported();
    bool wide = f.take_type() == "b64", pair = f.at(0).kind == Operand::kPair;
    Ref a = d.source(f.at(1), wide ? 8 : 4), mask = d.source(f.at(2), 4);
    Op& op = d.emit(wide ? op_match<u64> : op_match<u32>, OpClass::WarpSync);
    op.a = a;
    op.d = mask;
    op.mode = all ? kMatchAll : kMatchAny;
    op.dst = d.dest(pair ? f.at(0).items[0] : f.at(0), 4);
    if (pair) op.to_p = d.predicate_dest(f.at(0).items[1]);
}

// "d = reduction of a over the threads of membermask"
template <class T, class F>
void op_redux(Warp& w, const Op& op) {
    for_mask_groups(w, op.d, [&] {
        const T* a = w.cells<T>(op.a);
        u32 known = w.defined(op.a) & w.active, first = static_cast<u32>(__builtin_ctz(w.active));
        T result = a[first];
        for_lanes(w.active & ~(1u << first), [&](int i) { result = F{}(result, a[i]); });
        for_lanes(w.active, [&](int i) { w.cells<T>(op.dst)[i] = result; });
        w.define(op.dst, known == w.active ? kFull : 0);
        order_active_lanes(w);
    });
}

struct RAdd {
    u32 operator()(u32 a, u32 b) const { return a + b; }
};
struct RAnd {
    u32 operator()(u32 a, u32 b) const { return a & b; }
};
struct ROr {
    u32 operator()(u32 a, u32 b) const { return a | b; }
};
struct RXor {
    u32 operator()(u32 a, u32 b) const { return a ^ b; }
};
struct RMin {
    template <class T> T operator()(T a, T b) const { return b < a ? b : a; }
};
struct RMax {
    template <class T> T operator()(T a, T b) const { return a < b ? b : a; }
};

void decode_redux(Form& f) {
    Decoder& d = f.decoder;
    if (!f.take("sync")) f.unsupported();
    std::string operation = f.take_any({"add", "min", "max", "and", "or", "xor"}), type = f.take_type();
    if (type == "f32") f.unsupported("redux of .f32");
    bool sign = type == "s32";
    Handler fn = operation == "add"   ? op_redux<u32, RAdd>
                 : operation == "and" ? op_redux<u32, RAnd>
                 : operation == "or"  ? op_redux<u32, ROr>
                 : operation == "xor" ? op_redux<u32, RXor>
                 : operation == "min" ? (sign ? op_redux<s32, RMin> : op_redux<u32, RMin>)
                                      : (sign ? op_redux<s32, RMax> : op_redux<u32, RMax>);
    Ref a = d.source(f.at(1), 4), mask = d.source(f.at(2), 4);
    Op& op = d.emit(fn, OpClass::WarpSync);
    op.a = a;
    op.d = mask;
    op.dst = d.dest(f.at(0), 4);
}

void op_activemask(Warp& w, const Op& op) {
    for_lanes(w.active, [&](int i) { w.cells<u32>(op.dst)[i] = w.active; });
    w.define(op.dst, kFull);
}

void decode_activemask(Form& f) {
    f.take_type();
    f.decoder.emit(op_activemask, OpClass::WarpSync).dst = 0;
    f.decoder.program().code.back().dst = f.decoder.dest(f.at(0), 4);
}

// elect.sync: "the election of a leader thread happens deterministically, i.e. the same leader thread is elected for
// the same membermask every time"; which one is the seed's choice,
// or the lowest lane with the check `elect` off.
void op_elect(Warp& w, const Op& op) {
    for_mask_groups(w, op.d, [&] {
        u32 others = w.active;
        Random draw{w.cta->launch->seed ^ w.active};
        u32 choices = w.cta->checks(kCheckElect) ? static_cast<u32>(popcount(w.active)) : 1;
        for (u32 skip = draw.below(choices); skip; --skip) others &= others - 1;
        u32 leader = static_cast<u32>(__builtin_ctz(others));
        for_lanes(w.active, [&](int i) { w.cells<u32>(op.dst)[i] = leader; });
        w.define(op.dst, kFull);
        w.set_predicate(op.to_p, 1u << leader, kFull);
    });
}

void decode_elect(Form& f) {
    if (!f.take("sync") || f.at(0).kind != Operand::kPair) f.unsupported();
    Ref mask = f.decoder.source(f.at(1), 4);
    Op& op = f.decoder.emit(op_elect, OpClass::WarpSync);
    op.d = mask;
    op.dst = f.decoder.dest(f.at(0).items[0], 4);
    op.to_p = f.decoder.predicate_dest(f.at(0).items[1]);
}

}  // namespace

void add_shuffle_families(FamilyTable& t) {
    t["shfl"] = decode_shfl;
    t["vote"] = decode_vote;
    t["match"] = decode_match;
    t["redux"] = decode_redux;
    t["activemask"] = decode_activemask;
    t["elect"] = decode_elect;
}

}  // namespace ptxsim
