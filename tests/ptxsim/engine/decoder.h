// Instruction → Op. Each opcode family has a decode function that consumes the mnemonic's modifiers and operands;
// a modifier nobody consumed makes the instruction unsupported.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "error.h"
#include "program.h"

namespace ptxsim {

class Decoder;

// One instruction being decoded.
struct Form {
    Decoder& decoder;
    const Inst& inst;
    std::vector<std::string> left;  // modifiers not yet consumed

    bool take(const char* mod);
    // Consumes the first of the given modifiers that is present; "" if none.
    std::string take_any(std::initializer_list<const char*> mods);
    // Consumes the last / first type modifier.
    std::string take_type();
    std::string take_first_type();
    // Consumes cache operators and eviction hints, which change no value (PTX ISA 9.7.9.1-2).
    void take_cache_hints();
    // The instruction exists from this compute capability (times ten) on.
    void require_target(int capability) const;
    // The instruction exists on this target alone: those with an `a` have no successors.
    void require_exact_target(const char* target) const;
    void finish();
    const Operand& at(size_t i) const;
    size_t size() const { return inst.operands.size(); }
    [[noreturn]] void unsupported(const std::string& why = "") const;
};

using FamilyFn = void (*)(Form&);
using FamilyTable = std::unordered_map<std::string, FamilyFn>;
const FamilyTable& families();

struct Address {
    Ref base = 0;
    int base_bytes = 8;
    s64 offset = 0;
    bool framed = false;  // relative to the current frame's local memory
    Space space = Space::None;
    bool kernel_param = false;
};

// The memory operand of an op.
void set_address(Op& op, const Address& address);

class Decoder {
  public:
    explicit Decoder(Program& program);
    void run(const std::string& name);

    // Operands. `bytes` is the width the instruction reads, which decides how an immediate is stored.
    Ref source(const Operand& operand, int bytes);
    Ref source(const Operand& operand, const std::string& type);  // converts float literals to the type
    Ref dest(const Operand& operand, int bytes);
    int operand_bytes(const Operand& operand) const;  // width of a register operand, 0 if none
    int predicate(const Operand& operand);            // a negated source is inverted into a temporary
    int predicate_dest(const Operand& operand);
    bool is_predicate(const Operand& operand) const;
    Ref constant(u64 bits, int bytes);
    Ref temporary(int bytes);
    const Ref* list(const std::vector<u32>& refs);
    const void* keep(std::shared_ptr<const void> form) {
        program_.forms.push_back(std::move(form));
        return program_.forms.back().get();
    }
    Address address(const Operand& operand, Space space);
    u32 function_index(const std::string& name);
    bool has_function(const std::string& name) const;

    Op& emit(Handler fn, OpClass cls);
    // Branch targets are known once the function has been decoded.
    void branch_to(const std::string& label);
    void branch_table(const std::string& label);
    // Shared memory is accessed in pieces of 2^shift bytes: the race shadow has to be as fine.
    void narrow_shared_granule(int shift) {
        program_.shared_granule_shift = std::min(program_.shared_granule_shift, shift);
    }
    Program& program() { return program_; }
    const FunctionLayout& layout() const { return program_.functions[current_]; }
    u32 local_offset(const std::string& variable, bool& found) const;

  private:
    struct Fixup {
        u32 op;
        int inst;
    };
    struct TableFixup {
        std::vector<u32>* table;
        std::vector<int> insts;
    };

    void lay_out_shared();
    void collect_shared(const Function& function, std::vector<const Variable*>& used,
                        std::vector<const Function*>& seen) const;
    void lay_out_params();
    void lay_out_locals(const Function& function, FunctionLayout& layout);
    void lay_out_registers(const Function& function, FunctionLayout& layout);
    void decode_function(u32 index);
    void decode_instruction(const Inst& inst);
    void resolve_branches();
    int label_inst(const std::string& label) const;
    bool symbol_address(const Operand& operand, u64& bits);
    void note_sub_word(const Inst& inst);
    void watch(const Inst& inst, size_t first);

    Program& program_;
    const Module& module_;
    u32 current_ = 0;
    const Function* function_ = nullptr;
    const Inst* inst_ = nullptr;
    int inst_index_ = 0;
    std::map<std::pair<u64, int>, Ref> constants_;
    std::unordered_map<std::string, u32> shared_offsets_;
    std::vector<std::unordered_map<std::string, u32>> local_offsets_;  // by function
    std::unordered_map<std::string, u32> function_indices_;
    std::vector<u32> cell_;        // register id → Ref or predicate index, of the current function
    std::vector<bool> watched_;    // register id → wgmma may use it; empty if the function has none
    std::vector<u32> inst_pc_;     // instruction → pc
    std::vector<int> reconverge_;  // instruction → instruction where its branch reconverges, -1 = the end
    std::vector<Fixup> target_fixups_, reconverge_fixups_;
    std::vector<TableFixup> table_fixups_;
    u32 temporaries_used_ = 0, temporary_predicates_used_ = 0;
};

void release_module_storage(const Module& module);

// The host address of a module variable's storage (shared by all kernels of the module).
u64 module_variable_address(const std::shared_ptr<Module>& module, const std::string& name, u64* size = nullptr);

}  // namespace ptxsim
