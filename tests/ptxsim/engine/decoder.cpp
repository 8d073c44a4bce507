#include "decoder.h"

#include "control.h"
#include "flow.h"

namespace ptxsim {

// ---- Form ----

bool Form::take(const char* mod) {
    for (size_t i = 0; i < left.size(); ++i) {
        if (left[i] != mod) continue;
        left.erase(left.begin() + static_cast<long>(i));
        return true;
    }
    return false;
}

std::string Form::take_any(std::initializer_list<const char*> mods) {
    for (const char* mod : mods)
        if (take(mod)) return mod;
    return "";
}

namespace {
bool is_type(const std::string& mod) {
    static const char* types[] = {"b8",   "u8",   "s8",   "b16",   "u16",    "s16",  "f16",  "bf16",   "b32",
                                  "u32",  "s32",  "f32",  "f16x2", "bf16x2", "b64",  "u64",  "s64",    "f64",
                                  "pred", "tf32", "b128", "u16x2", "s16x2",  "e4m3", "e5m2", "e4m3x2", "e5m2x2"};
    for (const char* type : types)
        if (mod == type) return true;
    return false;
}
}  // namespace

std::string Form::take_type() {
    for (size_t i = left.size(); i-- > 0;) {
        if (!is_type(left[i])) continue;
        std::string type = left[i];
        left.erase(left.begin() + static_cast<long>(i));
        return type;
    }
    unsupported("it has no type");
}

std::string Form::take_first_type() {
    for (size_t i = 0; i < left.size(); ++i) {
        if (!is_type(left[i])) continue;
        std::string type = left[i];
        left.erase(left.begin() + static_cast<long>(i));
        return type;
    }
    unsupported("it has no type");
}

void Form::take_cache_hints() {
    static const char* hints[] = {"ca",
                                  "cg",
                                  "cs",
                                  "lu",
                                  "cv",
                                  "wb",
                                  "wt",
                                  "L1::evict_normal",
                                  "L1::evict_unchanged",
                                  "L1::evict_first",
                                  "L1::evict_last",
                                  "L1::no_allocate",
                                  "L2::evict_first",
                                  "L2::evict_last",
                                  "L2::evict_normal",
                                  "L2::cache_hint",
                                  "L2::64B",
                                  "L2::128B",
                                  "L2::256B",
                                  "evict_last",
                                  "evict_normal"};
    for (const char* hint : hints) take(hint);
}

void Form::require_target(int capability) const {
    const std::string& target = decoder.program().module->target;  // sm_89
    if (target.size() > 3 && std::atoi(target.c_str() + 3) < capability)
        unsupported("it needs .target sm_" + std::to_string(capability) + ", the module's is " + target);
}

void Form::require_exact_target(const char* target) const {
    const std::string& have = decoder.program().module->target;
    if (have != target) unsupported(std::string("it needs .target ") + target + ", the module's is " + have);
}

void Form::finish() {
    if (!left.empty()) unsupported("modifier ." + left[0] + " is not known here");
}

const Operand& Form::at(size_t i) const {
    if (i >= inst.operands.size()) unsupported("too few operands");
    return inst.operands[i];
}

void Form::unsupported(const std::string& why) const {
    throw SimError(ErrorKind::Unsupported, "This instruction is not supported" + (why.empty() ? "" : ": " + why) + ".");
}

// ---- Decoder ----

void set_address(Op& op, const Address& address) {
    op.a = address.base;
    op.offset = address.offset;
    op.space = address.framed ? Space::Local : address.space;
    op.addressing = static_cast<u8>((address.base_bytes == 8 ? 0 : kNarrowBase) | (address.framed ? kFramedBase : 0));
}

Decoder::Decoder(Program& program) : program_(program), module_(*program.module) {}

void Decoder::run(const std::string& name) {
    auto found = module_.function_index.find(name);
    if (found == module_.function_index.end())
        throw SimError(ErrorKind::BadProgram, "No entry `" + name + "` in the module.");
    program_.name = name;
    program_.function = &module_.functions[found->second];
    program_.functions.reserve(module_.functions.size() + 1);
    lay_out_params();
    function_index(name);
    lay_out_shared();
    for (u32 i = 0; i < program_.functions.size(); ++i) decode_function(i);
}

u32 Decoder::function_index(const std::string& name) {
    auto known = function_indices_.find(name);
    if (known != function_indices_.end()) return known->second;
    auto found = module_.function_index.find(name);
    if (found == module_.function_index.end() || !module_.functions[found->second].defined) {
        throw SimError(ErrorKind::Unsupported, "The function `" + name + "` has no body in this module.");
    }
    u32 index = static_cast<u32>(program_.functions.size());
    function_indices_.emplace(name, index);
    FunctionLayout layout;
    layout.function = &module_.functions[found->second];
    program_.functions.push_back(layout);
    local_offsets_.emplace_back();
    lay_out_locals(*layout.function, program_.functions.back());
    return index;
}

bool Decoder::has_function(const std::string& name) const {
    auto found = module_.function_index.find(name);
    return found != module_.function_index.end();
}

void Decoder::decode_function(u32 index) {
    current_ = index;
    function_ = program_.functions[index].function;
    lay_out_registers(*function_, program_.functions[index]);
    program_.functions[index].entry_pc = static_cast<u32>(program_.code.size());
    inst_pc_.clear();
    target_fixups_.clear();
    reconverge_fixups_.clear();
    table_fixups_.clear();
    for (inst_index_ = 0; inst_index_ < static_cast<int>(function_->body.size()); ++inst_index_) {
        inst_pc_.push_back(static_cast<u32>(program_.code.size()));
        decode_instruction(function_->body[inst_index_]);
    }
    u32 end = static_cast<u32>(program_.code.size());
    inst_pc_.push_back(end);
    program_.functions[index].exit_pc = end;
    Op op;
    op.fn = index == 0 ? op_exit : op_return;
    op.inst = static_cast<u32>(program_.places.size());
    program_.places.push_back({function_, function_->body.empty() ? nullptr : &function_->body.back()});
    program_.code.push_back(op);
    resolve_branches();
}

// An instruction the engine does not know becomes an op that stops with its text, so that unused code does no harm.
void Decoder::decode_instruction(const Inst& inst) {
    inst_ = &inst;
    temporaries_used_ = temporary_predicates_used_ = 0;
    program_.places.push_back({function_, &inst});
    note_sub_word(inst);
    size_t first = program_.code.size();
    try {
        Form form{*this, inst, inst.mods};
        auto family = families().find(inst.opcode);
        if (family == families().end()) form.unsupported("its opcode is not known");
        family->second(form);
        form.finish();
        watch(inst, first);
    } catch (const SimError& error) {
        program_.code.resize(first);
        for (auto* fixups : {&target_fixups_, &reconverge_fixups_})
            while (!fixups->empty() && fixups->back().op >= first) fixups->pop_back();
        std::string text(error.message);
        Op& op = emit(op_unsupported, OpClass::Other);
        program_.messages.push_back(text);
        op.stop = {static_cast<u32>(program_.messages.size() - 1)};
    }
}

// Ops of an ordinary instruction that touches registers of wgmma look at their marks first.
void Decoder::watch(const Inst& inst, size_t first) {
    if (watched_.empty() || inst.opcode == "wgmma") return;
    std::vector<int> writes, reads;
    registers_of(inst, writes, reads);
    Watch watch;
    auto add = [&](const std::vector<int>& ids, std::vector<u32>& slots) {
        for (int id : ids)
            if (watched_[static_cast<size_t>(id)]) slots.push_back(cell_[static_cast<size_t>(id)] / kLanes);
    };
    add(writes, watch.writes);
    add(reads, watch.reads);
    if (watch.writes.empty() && watch.reads.empty()) return;
    watch.copies = copies_register(inst);
    for (size_t i = first; i < program_.code.size(); ++i) {
        watch.run = program_.code[i].fn;
        program_.code[i].fn = op_watched;
        program_.code[i].watch = static_cast<u32>(program_.watches.size());
        program_.watches.push_back(watch);
    }
}

// Narrow shared accesses need a finer race shadow; a generic access may be one.
void Decoder::note_sub_word(const Inst& inst) {
    static const std::unordered_map<std::string, int> memory{{"ld", 1}, {"st", 1}, {"atom", 1}, {"red", 1}};
    if (!memory.count(inst.opcode)) return;
    bool elsewhere = inst.has("global") || inst.has("local") || inst.has("param") || inst.has("const") ||
                     inst.has("param::entry") || inst.has("param::func");
    if (elsewhere) return;
    for (const char* byte : {"b8", "u8", "s8"})
        if (inst.has(byte)) narrow_shared_granule(0);
    for (const char* half : {"b16", "u16", "s16", "f16", "bf16"})
        if (inst.has(half)) narrow_shared_granule(1);
}

Op& Decoder::emit(Handler fn, OpClass cls) {
    Op op;
    op.fn = fn;
    op.cls = cls;
    op.inst = static_cast<u32>(program_.places.size() - 1);
    if (inst_->guard >= 0) {
        op.guard = static_cast<int>(cell_[inst_->guard]);
        op.guard_negated = inst_->guard_negated;
    }
    program_.code.push_back(op);
    return program_.code.back();
}

int Decoder::label_inst(const std::string& label) const {
    const Label* found = function_->find_label(inst_->scope, label);
    if (!found) throw SimError(ErrorKind::BadProgram, "Unknown label `" + label + "`.");
    return found->inst;
}

void Decoder::branch_to(const std::string& label) {
    u32 op = static_cast<u32>(program_.code.size() - 1);
    int end = static_cast<int>(function_->body.size());
    target_fixups_.push_back({op, label.empty() ? end : label_inst(label)});
    reconverge_fixups_.push_back({op, inst_index_});
}

void Decoder::branch_table(const std::string& label) {
    const Label* found = function_->find_label(inst_->scope, label);
    if (!found || found->targets.empty())
        throw SimError(ErrorKind::BadProgram, "Unknown branch table `" + label + "`.");
    TableFixup fixup;
    for (const auto& target : found->targets) fixup.insts.push_back(label_inst(target));
    program_.lists.emplace_back(fixup.insts.size());
    fixup.table = &program_.lists.back();
    Op& op = program_.code.back();
    op.branch = {0, kNoPc, fixup.table->data(), static_cast<u32>(fixup.insts.size())};
    table_fixups_.push_back(std::move(fixup));
    reconverge_fixups_.push_back({static_cast<u32>(program_.code.size() - 1), inst_index_});
}

void Decoder::resolve_branches() {
    for (const Fixup& f : target_fixups_) program_.code[f.op].branch.target = inst_pc_[f.inst];
    for (const TableFixup& f : table_fixups_)
        for (size_t i = 0; i < f.insts.size(); ++i) (*f.table)[i] = inst_pc_[f.insts[i]];
    for (const Fixup& f : reconverge_fixups_) {
        int meet = reconverge_[f.inst];
        program_.code[f.op].branch.reconverge = meet >= 0       ? inst_pc_[meet]
                                                : current_ == 0 ? kNoPc
                                                                : program_.functions[current_].exit_pc;
    }
}

const FamilyTable& families() {
    static const FamilyTable table = [] {
        FamilyTable t;
        for (auto add : kFamilyGroups) add(t);
        return t;
    }();
    return table;
}

std::shared_ptr<Program> decode_kernel(std::shared_ptr<Module> module, const std::string& name) {
    auto program = std::make_shared<Program>();
    program->module = std::move(module);
    Decoder(*program).run(name);
    return program;
}

std::string Program::text_at(u32 pc) const {
    if (pc >= code.size()) return "the end";
    const Place& place = places[code[pc].inst];
    if (!place.inst) return "the end";
    std::string source = module->source_of(*place.inst);
    return "PTX line " + std::to_string(place.inst->line) + " `" + module->text_of(*place.inst) + "`" +
           (source.empty() ? "" : " (" + source + ")");
}

}  // namespace ptxsim
