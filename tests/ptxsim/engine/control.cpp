// Control flow (PTX ISA 9.7.12) and the miscellaneous trap, nanosleep, brkpt, pmevent (9.7.19).
#include "control.h"

#include <algorithm>

#include "bulk_copy.h"
#include "cta.h"
#include "host_calls.h"
#include "lanes.h"
#include "wgmma.h"

namespace ptxsim {

void op_exit(Warp& w, const Op&) {
    if (w.active == w.alive) check_wgmma_at_exit(w);
    if (!w.bulk_stores.empty()) finish_bulk_stores(w, w.active);
    w.exit_lanes(w.active);
}

// 9.7.12.6 ret: "Return from function to instruction after call".
void op_return(Warp& w, const Op&) {
    Fragment& f = w.fragment();
    w.next = f.frames.back().return_pc;
    f.frames.pop_back();
    f.pc = w.next;
    w.stop = true;  // the frame changed
}

void op_unsupported(Warp& w, const Op& op) { w.fail(ErrorKind::Unsupported, w.program->messages[op.stop.message]); }

namespace {

// 9.7.12.3 bra: "Branch to a target and continue execution there".
void op_branch(Warp& w, const Op& op) {
    u32 rest = w.fragment().mask & ~w.active;
    if (rest == 0) {
        w.next = op.branch.target;
        return;
    }
    w.diverge({{op.branch.target, w.active}, {w.next, rest}}, op.branch.reconverge);
}

// 9.7.12.4 brx.idx: "Branch to a label indexed from a list of potential branch targets".
void op_branch_indexed(Warp& w, const Op& op) {
    w.require_defined(w.defined(op.a), "the index of brx.idx");
    const u32* index = w.cells<u32>(op.a);
    std::vector<std::pair<u32, u32>> paths;
    for_lanes(w.active, [&](int lane) {
        if (index[lane] >= op.branch.target_count)
            w.fail(ErrorKind::OutOfBounds, "brx.idx index " + std::to_string(index[lane]) + " has no target.", lane);
        u32 pc = op.branch.targets[index[lane]];
        auto same = std::find_if(paths.begin(), paths.end(), [&](const auto& p) { return p.first == pc; });
        if (same == paths.end()) paths.push_back({pc, 1u << lane});
        else same->second |= 1u << lane;
    });
    u32 rest = w.fragment().mask & ~w.active;
    if (rest) paths.push_back({w.next, rest});
    if (paths.size() == 1) w.next = paths[0].first;
    else w.diverge(paths, op.branch.reconverge);
}

// The caller's .param variables (op.list: caller offset, callee offset, bytes) are copied lane by lane.
void copy_params(Warp& w, const u32* triples, u32 count, u32 from_base, u32 to_base, bool reverse) {
    for_lanes(w.active, [&](int lane) {
        u8* data = w.local.data() + static_cast<size_t>(lane) * w.local_stride;
        u8* known = w.local_defined.data() + static_cast<size_t>(lane) * w.local_stride;
        for (u32 i = 0; i < count; ++i) {
            u32 a = from_base + triples[3 * i + (reverse ? 1 : 0)], b = to_base + triples[3 * i + (reverse ? 0 : 1)],
                bytes = triples[3 * i + 2];
            std::copy(data + a, data + a + bytes, data + b);
            std::copy(known + a, known + a + bytes, known + b);
        }
    });
}

void enter_call(Warp& w, const Op& op, u32 callee) {
    const FunctionLayout& layout = w.program->functions[callee];
    Frame caller = w.fragment().frames.back();
    w.push_frame(layout, w.next);
    copy_params(w, op.list, op.count, caller.local, w.fragment().frames.back().local, false);
    w.next = layout.entry_pc;
    w.fragment().pc = w.next;
    w.stop = true;
}

// 9.7.12.5 call: "Call a function, recording the return location". Lanes predicated off wait behind the call.
void op_call(Warp& w, const Op& op) {
    u32 rest = w.fragment().mask & ~w.active;
    if (rest) return w.diverge({{w.current_pc(), w.active}, {w.next, rest}}, w.next);
    enter_call(w, op, op.call.callee);
}

void op_call_indirect(Warp& w, const Op& op) {
    w.require_defined(w.defined(op.a), "the address of an indirect call");
    const u64* address = w.cells<u64>(op.a);
    int leader = __builtin_ctz(w.active);
    u32 same = 0;
    for_lanes(w.active, [&](int lane) { same |= address[lane] == address[leader] ? 1u << lane : 0; });
    u32 rest = w.fragment().mask & ~w.active, others = w.active & ~same;
    if (rest || others) {
        std::vector<std::pair<u32, u32>> paths{{w.current_pc(), same}};
        if (others) paths.push_back({w.current_pc(), others});
        if (rest) paths.push_back({w.next, rest});
        return w.diverge(paths, w.next);
    }
    u64 target = address[leader];
    const Module& module = *w.program->module;
    if ((target & kWindowMask) != kFunctionWindow || (target & ~kWindowMask) >= module.functions.size()) {
        w.fail(ErrorKind::OutOfBounds, "Indirect call to " + hex(target) + ", which is no function.");
    }
    const Function* function = &module.functions[target & ~kWindowMask];
    for (u32 i = 0; i < w.program->functions.size(); ++i)
        if (w.program->functions[i].function == function) return enter_call(w, op, i);
    w.fail(ErrorKind::Unsupported, "Indirect call to `" + function->name + "`, which was not decoded.");
}

// The copy of the results, at the instruction after the call.
void op_take_results(Warp& w, const Op& op) {
    const Frame& caller = w.fragment().frames.back();
    copy_params(w, op.list, op.count, caller.local + caller.layout->local_bytes, caller.local, true);
}

void op_host_call(Warp& w, const Op& op) {
    if (op.mode == kVprintf) host_printf(w, op);
    else host_assert(w, op);
}

// 9.7.19.4 trap: "Abort execution and generate an interrupt to the host CPU".
void op_trap(Warp& w, const Op&) { w.fail(ErrorKind::Trap, "The kernel executed a trap."); }

void op_nothing(Warp&, const Op&) {}

// 9.7.19.2 nanosleep: the warp gives its turn away.
void op_nanosleep(Warp& w, const Op&) {
    w.fragment().pc = w.next;
    w.stop = true;
}

void decode_bra(Form& f) {
    f.take("uni");
    f.decoder.emit(op_branch, OpClass::Branch);
    f.decoder.branch_to(f.at(0).name);
}

void decode_brx(Form& f) {
    if (!f.take("idx")) f.unsupported();
    f.take("uni");
    Ref index = f.decoder.source(f.at(0), 4);
    f.decoder.emit(op_branch_indexed, OpClass::Branch).a = index;
    f.decoder.branch_table(f.at(1).name);
}

void decode_ret(Form& f) {
    f.take("uni");
    if (f.decoder.layout().function->entry) {
        f.decoder.emit(op_exit, OpClass::Branch);
        return;
    }
    f.decoder.emit(op_branch, OpClass::Branch);
    f.decoder.branch_to("");
}

void decode_exit(Form& f) { f.decoder.emit(op_exit, OpClass::Branch); }
void decode_trap(Form& f) { f.decoder.emit(op_trap, OpClass::Other); }

u32 offset_of(Form& f, const std::string& name) {
    bool found;
    u32 offset = f.decoder.local_offset(name, found);
    if (!found) f.unsupported("the parameter `" + name + "` is not known");
    return offset;
}

// A function's formals lie at the start of its frame in this order: results, then parameters (parser_body.cpp).
std::vector<u32> formal_offsets(const Function& function) {
    std::vector<u32> offsets;
    u32 offset = 0;
    for (const auto* formals : {&function.results, &function.params}) {
        for (const Variable& formal : *formals) {
            u32 align = static_cast<u32>(std::max(formal.align, 8));
            offset = (offset + align - 1) / align * align;
            offsets.push_back(offset);
            offset += static_cast<u32>(formal.size);
        }
    }
    return offsets;
}

void decode_host_call(Form& f, const std::string& name, const std::vector<const Operand*>& lists) {
    const Operand& arguments = *lists.back();
    std::vector<u32> offsets;
    for (const Operand& argument : arguments.items) offsets.push_back(offset_of(f, argument.name));
    if (lists.size() > 1) offsets.push_back(offset_of(f, lists[0]->items.at(0).name));
    Op& op = f.decoder.emit(op_host_call, OpClass::Other);
    op.mode = name == "vprintf" ? kVprintf : kAssertFail;
    op.list = f.decoder.list(offsets);
    op.count = static_cast<u8>(offsets.size());
}

// Sizes come from the caller's own variables: an indirect call has no other source for them.
u32 variable_bytes(Form& f, const std::string& name) {
    const Function& function = *f.decoder.layout().function;
    return static_cast<u32>(function.locals[function.local_index.at(name)].size);
}

void decode_call(Form& f) {
    f.take("uni");
    Decoder& d = f.decoder;
    std::vector<const Operand*> lists;
    const Operand* callee = nullptr;
    for (const Operand& operand : f.inst.operands) {
        if (operand.kind == Operand::kList) lists.push_back(&operand);
        else if (!callee) callee = &operand;
    }
    if (!callee) f.unsupported();
    bool indirect = callee->kind == Operand::kReg;
    if (callee->name == "vprintf" || callee->name == "__assertfail") return decode_host_call(f, callee->name, lists);
    bool has_results = f.at(0).kind == Operand::kList;
    const Operand empty;
    const Operand& results = has_results ? *lists[0] : empty;
    const Operand& arguments = lists.size() > (has_results ? 1u : 0u) ? *lists[has_results ? 1 : 0] : empty;

    Function shape;  // formals as the caller sees them
    for (const Operand& r : results.items)
        shape.results.push_back(d.layout().function->locals[d.layout().function->local_index.at(r.name)]);
    for (const Operand& a : arguments.items)
        shape.params.push_back(d.layout().function->locals[d.layout().function->local_index.at(a.name)]);
    std::vector<u32> formals = formal_offsets(shape), in, out;
    for (size_t i = 0; i < results.items.size(); ++i) {
        const std::string& name = results.items[i].name;
        for (u32 v : {offset_of(f, name), formals[i], variable_bytes(f, name)}) out.push_back(v);
    }
    for (size_t i = 0; i < arguments.items.size(); ++i) {
        const std::string& name = arguments.items[i].name;
        for (u32 v : {offset_of(f, name), formals[results.items.size() + i], variable_bytes(f, name)}) in.push_back(v);
    }
    Ref address = indirect ? d.source(*callee, 8) : 0;
    if (indirect)
        for (const Function& function : d.program().module->functions)
            if (!function.entry && function.defined) d.function_index(function.name);
    u32 target = indirect ? 0 : d.function_index(callee->name);
    Op& op = d.emit(indirect ? op_call_indirect : op_call, OpClass::Branch);
    op.a = address;
    op.call = {target};
    op.list = d.list(in);
    op.count = static_cast<u8>(arguments.items.size());
    Op& take = d.emit(op_take_results, OpClass::Move);
    take.list = d.list(out);
    take.count = static_cast<u8>(results.items.size());
}

void decode_nanosleep(Form& f) {
    f.take("u32");
    f.decoder.emit(op_nanosleep, OpClass::Other);
}

void decode_nothing(Form& f) {
    f.left.clear();
    f.decoder.emit(op_nothing, OpClass::Other);
}

}  // namespace

void add_control_families(FamilyTable& t) {
    t["bra"] = decode_bra;
    t["brx"] = decode_brx;
    t["call"] = decode_call;
    t["ret"] = decode_ret;
    t["exit"] = decode_exit;
    t["trap"] = decode_trap;
    t["nanosleep"] = decode_nanosleep;
    for (const char* inert : {"pmevent", "brkpt"}) t[inert] = decode_nothing;
}

}  // namespace ptxsim
