// A PTX module as text says it (PTX ISA 4 and 5): names resolved to scopes, nothing executed yet.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base.h"

namespace ptxsim {

enum class Space : u8 { None, Reg, Global, Shared, Local, Param, Const };

enum class RegClass : u8 { Pred, B16, B32, B64, B128 };

struct RegDecl {
    std::string name;
    RegClass cls = RegClass::B32;
};

struct Operand {
    enum Kind : u8 {
        kNone,
        kReg,      // id indexes Function::regs
        kImm,      // bits; is_float when written as 0f/0d/decimal
        kSymbol,   // a variable, function, label or special register, by name (+ offset)
        kAddress,  // [items[0] + offset]
        kVector,   // {items...}
        kPair,     // items[0] | items[1]
        kList,     // (items...)  of a call
        kSink,     // _
    };
    Kind kind = kNone;
    bool negated = false;   // !p
    bool is_float = false;  // the literal was a float
    u8 float_size = 0;      // 4 or 8 for 0f / 0d literals
    int id = -1;
    u64 bits = 0;
    s64 offset = 0;
    std::string name;
    std::vector<Operand> items;
};

struct Inst {
    std::string opcode;             // "ld", "mma", ...
    std::vector<std::string> mods;  // "global", "v4", "u32", ...
    std::vector<Operand> operands;
    int guard = -1;  // register id
    bool guard_negated = false;
    int line = 0;
    int loc = -1;   // index into Module::locs
    int scope = 0;  // for labels
    u32 text_begin = 0, text_end = 0;

    bool has(const char* mod) const {
        for (const auto& m : mods)
            if (m == mod) return true;
        return false;
    }
};

struct Variable {
    std::string name;
    Space space = Space::None;
    int align = 1;
    u64 size = 0;
    bool external = false;  // .extern or of unknown size
    std::vector<u8> init;
    std::vector<std::pair<u64, std::string>> relocs;  // (offset, symbol) of addresses in init
    std::vector<s64> reloc_addends;
};

struct Label {
    int inst = 0;
    std::vector<std::string> targets;  // of .branchtargets
};

struct Function {
    std::string name;
    bool entry = false, defined = false;
    std::vector<Variable> results, params;
    std::vector<RegDecl> regs;
    std::vector<Variable> locals;            // .local, .param and .shared variables of the body
    std::map<std::string, int> local_index;  // unique name → locals
    std::vector<Inst> body;
    std::vector<int> scope_parent{-1};
    std::map<std::pair<int, std::string>, Label> labels;
    int line = 0;
    int max_threads = 0;  // product of .maxntid / .reqntid, 0 if absent
    u32 cluster[3] = {};  // .reqnctapercluster, 0 if absent
    u32 max_cluster = 0;  // .maxclusterrank

    const Label* find_label(int scope, const std::string& label) const {
        for (; scope >= 0; scope = scope_parent[scope]) {
            auto it = labels.find({scope, label});
            if (it != labels.end()) return &it->second;
        }
        return nullptr;
    }
};

struct SourceLoc {
    int file = 0, line = 0;
    int caller_file = 0, caller_line = 0;  // inlined_at
};

struct Module {
    std::string text, target;
    std::vector<Variable> variables;  // .global, .const, .shared of the module
    std::map<std::string, int> variable_index;
    std::vector<Function> functions;
    std::map<std::string, int> function_index;
    std::map<int, std::string> files;
    std::vector<SourceLoc> locs;

    // The instruction as written, on one line.
    std::string text_of(const Inst& inst) const;
    std::string source_of(const Inst& inst) const;       // file:line
    std::string full_source_of(const Inst& inst) const;  // and where that was inlined
    std::string place(int file, int line) const;
};

}  // namespace ptxsim
