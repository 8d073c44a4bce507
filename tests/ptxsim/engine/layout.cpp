// Where variables live: kernel parameters, shared memory, a frame's local memory, module variables, registers.
#include <algorithm>
#include <mutex>

#include "decoder.h"
#include "flow.h"
#include "memory_map.h"

namespace ptxsim {

namespace {
constexpr u32 kTemporaries = 8;

u32 align_up(u32 value, u32 to) { return (value + to - 1) / to * to; }
}  // namespace

void Decoder::lay_out_params() {
    u32 offset = 0;
    for (const Variable& param : program_.function->params) {
        offset = align_up(offset, static_cast<u32>(param.align));
        program_.params.push_back({param.name, offset, static_cast<u32>(param.size)});
        offset += static_cast<u32>(param.size);
    }
    program_.param_bytes = offset;
}

// Shared variables of the kernel and of every function it may reach, static ones first, then the dynamic array.
void Decoder::lay_out_shared() {
    std::vector<const Variable*> used;
    std::vector<const Function*> seen;
    collect_shared(*program_.function, used, seen);
    u32 offset = kSharedBase;
    for (const Variable* variable : used) {
        if (variable->external) continue;
        offset = align_up(offset, static_cast<u32>(variable->align));
        shared_offsets_.emplace(variable->name, offset);
        offset += static_cast<u32>(variable->size);
    }
    program_.static_shared = offset - kSharedBase;
    u32 align = 16;
    for (const Variable* variable : used)
        if (variable->external) align = std::max(align, static_cast<u32>(variable->align));
    offset = align_up(offset, align);
    program_.dynamic_begin = offset;
    for (const Variable* variable : used)
        if (variable->external) shared_offsets_.emplace(variable->name, offset);
}

namespace {
void symbols_of(const Operand& operand, std::vector<const std::string*>& names) {
    if (operand.kind == Operand::kSymbol) names.push_back(&operand.name);
    for (const Operand& item : operand.items) symbols_of(item, names);
}
}  // namespace

void Decoder::collect_shared(const Function& function, std::vector<const Variable*>& used,
                             std::vector<const Function*>& seen) const {
    if (std::find(seen.begin(), seen.end(), &function) != seen.end()) return;
    seen.push_back(&function);
    auto use = [&](const Variable& v) {
        if (v.space == Space::Shared && std::find(used.begin(), used.end(), &v) == used.end()) used.push_back(&v);
    };
    for (const Variable& local : function.locals) use(local);
    bool indirect = false;
    for (const Inst& inst : function.body) {
        std::vector<const std::string*> names;
        for (const Operand& operand : inst.operands) symbols_of(operand, names);
        for (const std::string* name : names) {
            auto variable = module_.variable_index.find(*name);
            if (variable != module_.variable_index.end()) use(module_.variables[variable->second]);
            auto callee = module_.function_index.find(*name);
            if (callee != module_.function_index.end()) collect_shared(module_.functions[callee->second], used, seen);
        }
        indirect |= inst.opcode == "call" && names.empty();
    }
    for (const Function& other : module_.functions)
        if (indirect && !other.entry) collect_shared(other, used, seen);
}

void Decoder::lay_out_locals(const Function& function, FunctionLayout& layout) {
    auto& offsets = local_offsets_[static_cast<size_t>(&layout - program_.functions.data())];
    u32 offset = 0;
    for (const Variable& local : function.locals) {
        if (local.space != Space::Local && local.space != Space::Param) continue;
        if (function.entry && std::any_of(function.params.begin(), function.params.end(),
                                          [&](const Variable& p) { return p.name == local.name; }))
            continue;
        offset = align_up(offset, static_cast<u32>(std::max(local.align, 8)));
        offsets.emplace(local.name, offset);
        offset += static_cast<u32>(local.size);
    }
    layout.local_bytes = align_up(offset, 16);
}

void Decoder::lay_out_registers(const Function& function, FunctionLayout& layout) {
    Flow flow = analyse_flow(function);
    watched_ = watched_registers(function);
    RegisterMap map = allocate_registers(function, flow, watched_);
    layout.narrow_cells = map.narrow + kTemporaries;
    layout.wide_cells = map.wide + kTemporaries;
    layout.predicates = map.predicates + kTemporaries;
    cell_.assign(function.regs.size(), 0);
    for (size_t r = 0; r < cell_.size(); ++r) {
        RegClass cls = function.regs[r].cls;
        cell_[r] = cls == RegClass::Pred  ? map.index[r]
                   : cls == RegClass::B64 ? (layout.narrow_cells + 2 * map.index[r]) * kLanes
                                          : map.index[r] * kLanes;
    }
    reconverge_.assign(function.body.size(), -1);
    for (size_t i = 0; i < function.body.size(); ++i) {
        int block = flow.block_of[i], meet = block < 0 ? -1 : flow.immediate_post_dominator[block];
        reconverge_[i] = meet < 0 ? -1 : flow.blocks[meet].begin;
    }
}

Ref Decoder::temporary(int bytes) {
    const FunctionLayout& here = program_.functions[current_];
    if (temporaries_used_ >= kTemporaries)
        throw SimError(ErrorKind::Unsupported, "Too many temporaries in one instruction.");
    u32 n = temporaries_used_++;
    return bytes == 8 ? (here.narrow_cells + 2 * (here.wide_cells - kTemporaries + n)) * kLanes
                      : (here.narrow_cells - kTemporaries + n) * kLanes;
}

u32 Decoder::local_offset(const std::string& variable, bool& found) const {
    auto it = local_offsets_[current_].find(variable);
    found = it != local_offsets_[current_].end();
    return found ? it->second : 0;
}

namespace {
struct ModuleStorage { std::vector<AllocationPtr> variables; };

// Variables live as long as their module; kernels of one module share them.
std::map<const Module*, ModuleStorage>& storages() {
    static std::map<const Module*, ModuleStorage> all;
    return all;
}
std::mutex storage_mutex;

u64 symbol_value(const Module& module, const ModuleStorage& storage, const std::string& symbol) {
    auto variable = module.variable_index.find(symbol);
    if (variable != module.variable_index.end() && storage.variables[variable->second])
        return storage.variables[variable->second]->base;
    auto function = module.function_index.find(symbol);
    if (function != module.function_index.end()) return kFunctionWindow | static_cast<u64>(function->second);
    throw SimError(ErrorKind::BadProgram,
                   "The initial value of a variable names `" + symbol + "`, which does not exist.");
}

const ModuleStorage& storage_of(const Module& module) {
    std::lock_guard<std::mutex> lock(storage_mutex);
    auto found = storages().find(&module);
    if (found != storages().end()) return found->second;
    ModuleStorage& storage = storages()[&module];
    storage.variables.resize(module.variables.size());
    for (size_t i = 0; i < module.variables.size(); ++i) {
        const Variable& v = module.variables[i];
        if (v.space != Space::Shared) storage.variables[i] = MemoryMap::instance().create(v.size, v.name, false, false);
    }
    for (size_t i = 0; i < module.variables.size(); ++i) {
        const Variable& v = module.variables[i];
        if (v.init.empty() || !storage.variables[i]) continue;
        u8* data = reinterpret_cast<u8*>(storage.variables[i]->base);
        std::memcpy(data, v.init.data(), v.init.size());
        for (size_t r = 0; r < v.relocs.size(); ++r) {
            u64 value = symbol_value(module, storage, v.relocs[r].second) + static_cast<u64>(v.reloc_addends[r]);
            std::memcpy(data + v.relocs[r].first, &value, 8);
        }
        storage.variables[i]->writable = v.space == Space::Global;
    }
    return storage;
}
}  // namespace

u64 module_variable_address(const std::shared_ptr<Module>& module, const std::string& name, u64* size) {
    auto found = module->variable_index.find(name);
    if (found == module->variable_index.end()) return 0;
    const AllocationPtr& allocation = storage_of(*module).variables[found->second];
    if (size && allocation) *size = allocation->size;
    return allocation ? allocation->base : 0;
}

void release_module_storage(const Module& module) {
    std::lock_guard<std::mutex> lock(storage_mutex);
    auto found = storages().find(&module);
    if (found == storages().end()) return;
    for (const AllocationPtr& a : found->second.variables)
        if (a) MemoryMap::instance().remove(a->base);
    storages().erase(found);
}

}  // namespace ptxsim
