#include "warp.h"

#include <algorithm>

#include "cta.h"
#include "special_registers.h"

namespace ptxsim {

void Warp::start(Cta& owner, int index, u32 lanes, u64 seed) {
    cta = &owner;
    program = owner.program;
    id = index;
    alive = lanes;
    random.state = mix(seed ^ (static_cast<u64>(index) << 32));
    registers.clear();
    fragments.assign(1, Fragment{});
    joins.clear();
    current = 0;
    clocks.start(owner.warp_count, static_cast<u32>(index), lanes, owner.checks(kCheckRaceWarp));
    acquired_word = 0;
    copies.clear();
    wgmma.reset();
    std::fill(commits, commits + kLanes, 0u);
    bulk_stores.clear();
    std::fill(bulk_commits, bulk_commits + kLanes, 0u);
    fill_special_registers(*this);
    Fragment& f = fragments[0];
    f.mask = lanes;
    push_frame(program->functions[0], kNoPc);
    f.pc = program->functions[0].entry_pc;
}

// A call's registers follow its caller's; they start undefined in the lanes that make the call, and poisoned unless
// other lanes may be using the same cells in a call of their own.
void Warp::push_frame(const FunctionLayout& callee, u32 return_pc) {
    Fragment& f = fragment();
    Frame frame;
    frame.layout = &callee;
    frame.return_pc = return_pc;
    if (!f.frames.empty()) {
        const Frame& caller = f.frames.back();
        frame.cells = caller.cells + caller.layout->frame_cells();
        frame.predicates = caller.predicates + caller.layout->predicates;
        frame.local = caller.local + caller.layout->local_bytes;
        if (f.frames.size() > 64) fail(ErrorKind::Unsupported, "Calls nest deeper than 64.");
    }
    u32 cells = frame.cells + callee.frame_cells(), count = frame.predicates + callee.predicates;
    if (registers.size() < cells) registers.resize(cells, 0xffffffffu);
    if (register_defined.size() < cells / kLanes + 2) register_defined.resize(cells / kLanes + 2);
    if (predicate_bits.size() < count + 1) predicate_bits.resize(count + 1), predicate_defined_bits.resize(count + 1);
    if (f.mask == alive) std::fill(registers.begin() + frame.cells, registers.begin() + cells, 0xffffffffu);
    for (u32 i = frame.cells / kLanes; i < cells / kLanes; ++i) register_defined[i] &= ~f.mask;
    for (u32 i = frame.predicates; i < count; ++i) predicate_defined_bits[i] &= ~f.mask;
    reserve_local(frame.local + callee.local_bytes);
    f.frames.push_back(frame);
    enter_frame();
}

// Local memory is lane-major; growing it moves every lane's bytes.
void Warp::reserve_local(u32 bytes) {
    if (bytes <= local_stride) return;
    u32 stride = (bytes + 63) / 64 * 64;
    std::vector<u8> data(static_cast<size_t>(stride) * kLanes, 0xff), known(static_cast<size_t>(stride) * kLanes, 0);
    for (int lane = 0; lane < kLanes; ++lane) {
        std::copy_n(local.begin() + static_cast<size_t>(lane) * local_stride, local_stride,
                    data.begin() + static_cast<size_t>(lane) * stride);
        std::copy_n(local_defined.begin() + static_cast<size_t>(lane) * local_stride, local_stride,
                    known.begin() + static_cast<size_t>(lane) * stride);
    }
    local.swap(data);
    local_defined.swap(known);
    local_stride = stride;
}

void Warp::enter_frame() {
    const Frame& frame = fragment().frames.back();
    files[kRegisters] = registers.data() + frame.cells;
    defined_files[kRegisters] = register_defined.data() + frame.cells / kLanes;
    files[kConstants] = const_cast<u32*>(program->constants.data());
    defined_files[kConstants] = const_cast<u32*>(constants_defined(program->constants.size() / kLanes + 1));
    files[kSpecials] = specials.data();
    defined_files[kSpecials] = defined_files[kConstants];
    predicates = predicate_bits.data() + frame.predicates;
    predicates_defined = predicate_defined_bits.data() + frame.predicates;
}

bool Warp::runnable() const {
    for (const Fragment& f : fragments)
        if (f.state == FragmentState::Runnable) return true;
    return false;
}

// Lanes that diverged run in an order the seed chooses.
bool Warp::pick_fragment() {
    if (fragments.size() == 1) {
        current = 0;
    } else {
        int count = 0;
        for (int i = 0; i < static_cast<int>(fragments.size()); ++i)
            if (fragments[i].state == FragmentState::Runnable && random.below(++count) == 0) current = i;
        if (count == 0) return false;
    }
    if (fragments[current].state != FragmentState::Runnable) return false;
    enter_frame();
    return true;
}

u32 Warp::run(u32 quantum) {
    u32 done = 0;
    wake_at_mbarriers(false);
    wake_at_warpgroup();
    while (done < quantum && alive) {
        if (!pick_fragment()) {
            resolve_waiting_fragments();
            if (!pick_fragment()) break;
        }
        done += run_fragment(quantum - done);
    }
    return done;
}

u32 Warp::run_fragment(u32 quantum) {
    Fragment& f = fragments[current];
    const Op* code = program->code.data();
    const u32 join_pc = f.join < 0 ? kNoPc : joins[f.join].pc;
    Profile* profile = cta->profile;
    stop = false;
    u32 done = 0;
    for (u32 pc = f.pc; done < quantum;) {
        if (pc == join_pc && joins[f.join].depth == f.frames.size()) {
            arrive_at_join();
            break;
        }
        const Op& op = code[pc];
        active = f.mask;
        if (op.guard >= 0) {
            u32 unknown = active & ~predicates_defined[op.guard];
            active &= op.guard_negated ? ~predicates[op.guard] : predicates[op.guard];
            if (__builtin_expect(unknown != 0, 0)) decide_undefined_guard(unknown);
        }
        next = pc + 1;
        ++done;
        profile[pc].issues += 1;
        profile[pc].lanes += popcount(active);
        if (active) {
            op.fn(*this, op);
            if (stop) break;
        }
        f.pc = pc = next;
    }
    return done;
}

// With the check off, an undefined predicate goes the way the seed says.
void Warp::decide_undefined_guard(u32 lanes) {
    u32 both = kCheckUndefined | kCheckUndefinedBranch;
    if ((cta->launch->checks & both) == both)
        fail(ErrorKind::Undefined, "An undefined value reaches a branch or guard predicate.", __builtin_ctz(lanes));
    active = (active & ~lanes) | (static_cast<u32>(random.next()) & lanes);
}

void report_undefined(const Warp& w, u32 lanes, const char* what) {
    if (!w.cta->checks(kCheckUndefined)) return;
    w.fail(ErrorKind::Undefined, std::string("An undefined value reaches ") + what + ".", __builtin_ctz(lanes));
}

void Warp::fail(ErrorKind kind, const std::string& message, int lane) const {
    SimError error(kind, message);
    error.lane = lane >= 0 ? lane : active ? __builtin_ctz(active) : -1;
    throw error;
}

const u32* constants_defined(size_t count) {
    static thread_local std::vector<u32> ones;
    if (ones.size() < count) ones.assign(count + 4096, kFull);
    return ones.data();
}

}  // namespace ptxsim
