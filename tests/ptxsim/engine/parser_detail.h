// The parser's state, shared by the files that parse declarations and bodies.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lexer.h"
#include "parser.h"

namespace ptxsim {

class Parser {
  public:
    Parser(Module& module) : module_(module), lexer_(module.text) {}
    void parse();

  private:
    struct Scope {
        int id;
        std::map<std::string, int> regs;                    // name → register id
        std::map<std::string, std::pair<int, int>> ranges;  // prefix → (first id, count)
        std::map<std::string, std::string> variables;       // name → unique name
    };

    // parser.cpp: module level
    void parse_directive(const std::string& name);
    void parse_module_variable(Space space, bool external);
    void parse_function(bool entry);
    void parse_performance_directives(Function& function);
    std::vector<Variable> parse_formals();
    void skip_section();

    // parser_data.cpp: variables and their initial values
    Variable parse_variable(Space space);
    void parse_initializer(Variable& variable, int element);
    void parse_initial_value(Variable& variable, int element, u64& at);

    // parser_body.cpp: statements of a function
    void parse_body(Function& function);
    void parse_statement();
    void parse_body_directive();
    void parse_registers();
    void parse_local_variable(Space space);
    void parse_label_directive(const std::string& label);
    void parse_instruction(Token first, bool guarded, int guard, bool guard_negated);
    Operand parse_operand();
    Operand parse_name();
    Operand parse_address();
    Operand parse_group(const char* close, Operand::Kind kind);
    s64 parse_signed();
    int find_register(const std::string& name) const;
    std::string find_variable(const std::string& name) const;
    void parse_loc();

    Module& module_;
    Lexer lexer_;
    Function* function_ = nullptr;
    std::vector<Scope> scopes_;
    int current_loc_ = -1;
};

}  // namespace ptxsim
