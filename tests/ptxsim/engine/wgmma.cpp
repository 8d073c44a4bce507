// wgmma.mma_async and its groups. Each warp computes its own 16 rows at a moment the seed chooses, from issue to the
// wait that covers it; its reads of shared memory last as long (async_proxy.h).
#include "wgmma.h"

#include "access.h"
#include "control.h"
#include "cta.h"
#include "lanes.h"
#include "matrix_warp.h"
#include "wgmma_watch.h"

namespace ptxsim {

WgmmaState& wgmma_state(Warp& w) {
    if (!w.wgmma) w.wgmma = std::make_shared<WgmmaState>();
    return *w.wgmma;
}

void compute_pending(Warp& w, WgmmaState& s) {
    for (PendingWgmma& p : s.pending)
        if (!p.computed) multiply_wgmma(w, p);
}

void check_wgmma_at_exit(Warp& w) {
    w.cta->warpgroups[static_cast<u32>(w.id) / kWarpgroup].exit(w);
    if (!w.wgmma || w.wgmma->pending.empty() || !w.cta->checks(kCheckWgmma)) return;
    w.fail(ErrorKind::Race, "The warp exits while a wgmma is pending (" +
                                w.program->text_at(w.wgmma->pending.front().pc) + "): no wgmma.wait_group covers it.");
}

namespace {

const WgmmaForm& form_of(const Op& op) { return *static_cast<const WgmmaForm*>(op.form); }

Warpgroup& warpgroup(Warp& w) { return w.cta->warpgroups[static_cast<u32>(w.id) / kWarpgroup]; }

u64 uniform_descriptor(Warp& w, Ref ref, const char* what) {
    w.require_defined(w.defined(ref), what);
    const u64* cells = w.cells<u64>(ref);
    for (int i = 1; i < kLanes; ++i)
        if (cells[i] != cells[0])
            w.fail(ErrorKind::Divergence, std::string("Lanes of a warp give different values for ") + what + ".", i);
    return cells[0];
}

bool accumulates(Warp& w, const Op& op) {
    if (op.p < 0) return op.imm != 0;
    w.require_defined(w.predicates_defined[op.p], "scale-d of a wgmma");
    u32 p = w.predicates[op.p];
    if (p != 0 && p != kFull) w.fail(ErrorKind::Divergence, "Lanes of a warp give different values for scale-d.");
    return p != 0;
}

// Every piece that this warp's part reads is checked and marked; false pieces of A and B are remembered.
void read_operands(Warp& w, PendingWgmma& p, const WgmmaForm& f) {
    AsyncProxy& proxy = w.cta->proxy;
    AsyncProxy::Reading reading = proxy.reading(w, AsyncReader::Wgmma, p.number);
    auto read = [&](u32 at) {
        shared_pointer(w, 0, at, 16);
        return proxy.read_piece(w, reading, at);
    };
    u32 first = static_cast<u32>(w.id) % kWarpgroup * 16, pieces = 0;
    for (u32 i = 0; i < 16 && !f.a_in_registers && !f.a_transposed; ++i)
        for (u32 half = 0; half < 2; ++half, ++pieces)
            if (!read(p.a.k_major(first + i, half))) p.bad_rows |= 1u << i;
    for (u32 k = 0; k < f.k && f.a_transposed; ++k)
        for (u32 c = 0; c < 2; ++c, ++pieces)
            if (!read(p.a.mn_major(k, first / 8 + c))) p.bad_rows |= 0xffu << (8 * c);
    for (u32 n = 0; n < f.n && !f.b_transposed; ++n)
        for (u32 half = 0; half < 2; ++half)
            if (!read(p.b.k_major(n, half))) p.bad_columns[n / 32] |= 1u << n % 32;
    for (u32 k = 0; k < f.k && f.b_transposed; ++k)
        for (u32 c = 0; c < f.n / 8; ++c)
            if (!read(p.b.mn_major(k, c))) p.bad_columns[c / 4] |= 0xffu << (8 * (c % 4));
    // The tensor core reads B once for the warpgroup.
    w.cta->counters->wgmma_shared_bytes += 16ull * pieces + 32ull * f.n / kWarpgroup;
}

void op_mma_async(Warp& w, const Op& op) {
    if (!enter_whole_warp(w)) return;
    const WgmmaForm& f = form_of(op);
    WgmmaState& s = wgmma_state(w);
    PendingWgmma p;
    u64 a = f.a_in_registers ? 0 : uniform_descriptor(w, op.a, "the descriptor of A");
    u64 b = uniform_descriptor(w, op.b, "the descriptor of B");
    p.accumulates = accumulates(w, op);
    warpgroup(w).execute(w, a, b);
    p.op = &op;
    p.pc = w.current_pc();
    p.group = s.committed + 1;
    p.cells = w.fragment().frames.back().cells;
    if (!f.a_in_registers) p.a = read_descriptor(w, a, "A");
    p.b = read_descriptor(w, b, "B");
    p.number = w.cta->proxy.begin_read(w, AsyncReader::Wgmma);
    claim_registers(w, s, p, f);
    read_operands(w, p, f);
    w.cta->counters->mma_flop += f.warp_flop();
    w.cta->counters->wgmma_flop += f.warp_flop();
    s.pending.push_back(p);
    if (w.random.below(2)) compute_pending(w, s);
}

// "establishes an ordering between prior accesses to any warpgroup registers and subsequent accesses by
// wgmma.mma_async".
void op_wgmma_fence(Warp& w, const Op&) {
    if (!enter_whole_warp(w)) return;
    warpgroup(w).execute(w);
    ++wgmma_state(w).fences;
}

void op_wgmma_commit(Warp& w, const Op&) {
    if (!enter_whole_warp(w)) return;
    warpgroup(w).execute(w);
    WgmmaState& s = wgmma_state(w);
    ++s.committed;
    if (w.random.below(4) == 0) compute_pending(w, s);
}

// With release_by_warp off a wgmma is one operation of its warpgroup: a wait ends it for all four warps, once they have
// all come to it.
bool finish_together(Warp& w) {
    if (!warpgroup(w).whole(w)) {
        w.next = w.current_pc();
        w.cta->profile[w.next].issues -= 1;  // it is counted when it comes back
        w.cta->profile[w.next].lanes -= kLanes;
        w.block(FragmentState::AtWarpgroup);
        return false;
    }
    for (u32 i = 0, first = static_cast<u32>(w.id) / kWarpgroup * kWarpgroup; i < kWarpgroup; ++i) {
        Warp& other = w.cta->warps[first + i];
        if (other.wgmma) compute_pending(other, *other.wgmma);
    }
    return true;
}

// "only N or fewer of the most recent wgmma-groups are pending and all the prior wgmma-groups are complete".
void op_wgmma_wait(Warp& w, const Op& op) {
    if (!enter_whole_warp(w)) return;
    Fragment& f = w.fragment();
    if (!f.released) warpgroup(w).execute(w);
    f.released = false;
    if (!w.cta->checks(kCheckReleaseByWarp) && !finish_together(w)) return;
    ++w.cta->counters->wgmma_waits;
    WgmmaState& s = wgmma_state(w);
    u32 allowed = static_cast<u32>(op.imm);
    if (s.committed < allowed) return;
    while (!s.pending.empty() && s.pending.front().group <= s.committed - allowed) {
        PendingWgmma& p = s.pending.front();
        if (!p.computed) multiply_wgmma(w, p);
        w.cta->proxy.end_read(w, AsyncReader::Wgmma, p.number);
        s.retired = p.number;
        s.pending.pop_front();
    }
}

// ---- decoding ----

bool legal_n(u32 n, bool integer) {
    if (n < 8 || n > 256 || n % 8) return false;
    return !integer || n % 16 == 0 || n == 8 || n == 24;
}

void take_shape(Form& f, WgmmaForm& form) {
    for (const std::string& mod : f.left) {
        unsigned n = 0, k = 0;
        int used = 0;
        if (std::sscanf(mod.c_str(), "m64n%uk%u%n", &n, &k, &used) != 2 || static_cast<size_t>(used) != mod.size())
            continue;
        form.n = n;
        form.k = k;
        f.take(std::string(mod).c_str());
        return;
    }
    f.unsupported("it has no shape m64nNkK");
}

void take_types(Form& f, WgmmaForm& form) {
    std::string d = f.take_first_type(), a = f.take_first_type(), b = f.take_first_type();
    if (!parse_input(a, form.a_type) || !parse_input(b, form.b_type)) f.unsupported("type ." + a + " or ." + b);
    bool integer = d == "s32", bytes = element_bytes(form.a_type) == 1;
    form.accumulator = integer ? Accumulator::S32 : d == "f16" ? Accumulator::F16 : Accumulator::F32;
    auto is = [](Input type, Input x, Input y) { return type == x || type == y; };
    bool eighth = is(form.a_type, kE4m3, kE5m2) && is(form.b_type, kE4m3, kE5m2);
    bool whole = is(form.a_type, kS8, kU8) && is(form.b_type, kS8, kU8);
    bool wide = form.a_type == form.b_type && (is(form.a_type, kF16, kBf16) || form.a_type == kTf32);
    bool result = integer ? whole : d == "f32" ? eighth || wide : d == "f16" && (eighth || form.a_type == kF16);
    if (!result || !(eighth || whole || wide)) f.unsupported("these types together");
    u32 depth = bytes ? 32 : form.a_type == kTf32 ? 8 : 16;
    if (form.k != depth || !legal_n(form.n, integer)) f.unsupported("this shape for ." + a);
}

u64 immediate(Form& f, size_t i) {
    if (f.at(i).kind != Operand::kImm) f.unsupported("its scales and transpositions have to be immediates");
    return f.at(i).bits;
}

bool take_sign(Form& f, size_t i) {
    s64 value = static_cast<s32>(immediate(f, i));
    if (value != 1 && value != -1) f.unsupported("a scale that is neither 1 nor -1");
    return value < 0;
}

void decode_mma_async(Form& f) {
    Decoder& d = f.decoder;
    if (f.inst.has("sp")) f.unsupported("sparse matrices");
    auto form = std::make_shared<WgmmaForm>();
    take_shape(f, *form);
    form->saturate = f.take("satfinite");
    take_types(f, *form);
    form->a_in_registers = f.at(1).kind == Operand::kVector;
    if (f.at(0).items.size() != form->d_registers()) f.unsupported("number of accumulator registers");
    if (form->a_in_registers && f.at(1).items.size() != 4) f.unsupported("number of registers of A");
    bool halves = element_bytes(form->a_type) == 2;
    size_t i = 4;
    if (form->accumulator != Accumulator::S32) {
        form->negative = take_sign(f, i) != take_sign(f, i + 1);
        i += 2;
    }
    if (halves && !form->a_in_registers) form->a_transposed = immediate(f, i++) != 0;
    if (halves) form->b_transposed = immediate(f, i++) != 0;
    if (f.size() != i) f.unsupported("number of operands");
    std::vector<u32> refs;
    for (const Operand& x : f.at(0).items) refs.push_back(d.dest(x, 4));
    if (form->a_in_registers)
        for (const Operand& x : f.at(1).items) refs.push_back(d.source(x, 4));
    for (u32 ref : refs)
        if (ref >> kFileShift != kRegisters) f.unsupported("an operand that is no register");
    Ref a = form->a_in_registers ? 0 : d.source(f.at(1), 8), b = d.source(f.at(2), 8);
    bool constant = f.at(3).kind == Operand::kImm;
    int p = constant ? -1 : d.predicate(f.at(3));
    Op& op = d.emit(op_mma_async, OpClass::Wgmma);
    op.a = a;
    op.b = b;
    op.p = p;
    op.imm = constant ? static_cast<s64>(f.at(3).bits) : 0;
    op.list = d.list(refs);
    op.form = d.keep(form);
}

void decode_wgmma(Form& f) {
    f.require_exact_target("sm_90a");
    bool group = f.take("commit_group"), wait = f.take("wait_group"), fence = f.take("fence");
    bool multiply = f.take("mma_async");
    if (!f.take("sync") || !f.take("aligned")) f.unsupported("it needs .sync.aligned");
    if (multiply) return decode_mma_async(f);
    if (!group && !wait && !fence) f.unsupported();
    s64 pending = wait ? static_cast<s64>(immediate(f, 0)) : 0;
    f.decoder.emit(group ? op_wgmma_commit : wait ? op_wgmma_wait : op_wgmma_fence, OpClass::Other).imm = pending;
}

}  // namespace

void add_wgmma_families(FamilyTable& t) { t["wgmma"] = decode_wgmma; }

}  // namespace ptxsim
