// Statements of a function: declarations, labels, instructions and their operands (PTX ISA 4.2, 6).
#include "parser_detail.h"

namespace ptxsim {

void Parser::parse_body(Function& function) {
    function_ = &function;
    function.defined = true;
    for (auto* formals : {&function.results, &function.params}) {
        for (const Variable& formal : *formals) {
            function.local_index.emplace(formal.name, static_cast<int>(function.locals.size()));
            function.locals.push_back(formal);
        }
    }
    lexer_.expect("{");
    scopes_.assign(1, Scope{0, {}, {}, {}});
    current_loc_ = -1;
    while (!scopes_.empty()) parse_statement();
    function_ = nullptr;
}

void Parser::parse_statement() {
    if (lexer_.accept(";")) return;
    if (lexer_.accept("{")) {
        int id = static_cast<int>(function_->scope_parent.size());
        function_->scope_parent.push_back(scopes_.back().id);
        scopes_.push_back(Scope{id, {}, {}, {}});
        return;
    }
    if (lexer_.accept("}")) return scopes_.pop_back();
    if (lexer_.peek().kind == Token::kDirective) return parse_body_directive();

    bool guarded = lexer_.accept("@"), negated = false;
    int guard = -1;
    u32 begin = lexer_.peek().begin;
    if (guarded) {
        negated = lexer_.accept("!");
        Token name = lexer_.take();
        guard = find_register(name.text);
        if (guard < 0) lexer_.fail("unknown predicate `" + name.text + "`");
    }
    Token first = lexer_.take();
    if (first.kind != Token::kWord) lexer_.fail("unexpected `" + first.text + "`");
    if (!guarded && lexer_.accept(":")) {
        const Token& next = lexer_.peek();
        if (next.is(".branchtargets") || next.is(".calltargets") || next.is(".callprototype")) {
            return parse_label_directive(first.text);
        }
        function_->labels[{scopes_.back().id, first.text}].inst = static_cast<int>(function_->body.size());
        return;
    }
    if (guarded) first.begin = begin - 1;
    parse_instruction(first, guarded, guard, negated);
}

void Parser::parse_body_directive() {
    std::string name = lexer_.take().text;
    if (name == ".reg") return parse_registers();
    if (name == ".local") return parse_local_variable(Space::Local);
    if (name == ".shared") return parse_local_variable(Space::Shared);
    if (name == ".param") return parse_local_variable(Space::Param);
    if (name == ".loc") return parse_loc();
    if (name == ".extern" || name == ".visible" || name == ".weak") return;
    if (name == ".pragma") {
        while (!lexer_.accept(";")) lexer_.take();
        return;
    }
    lexer_.fail("unknown directive `" + name + "` in a function");
}

// .branchtargets (11.3.1), .calltargets and .callprototype (11.3.2-3) carry a label.
void Parser::parse_label_directive(const std::string& label) {
    std::string name = lexer_.take().text;
    Label& entry = function_->labels[{scopes_.back().id, label}];
    entry.inst = static_cast<int>(function_->body.size());
    while (!lexer_.accept(";")) {
        Token token = lexer_.take();
        if (name == ".branchtargets" && token.kind == Token::kWord) entry.targets.push_back(token.text);
    }
}

void Parser::parse_registers() {
    std::string type = lexer_.take().text;
    RegClass cls;
    if (!parse_reg_class(type, cls)) lexer_.fail("unknown register type `" + type + "`");
    do {
        std::string name = lexer_.take().text;
        Scope& scope = scopes_.back();
        int first = static_cast<int>(function_->regs.size());
        if (!lexer_.accept("<")) {
            scope.regs[name] = first;
            function_->regs.push_back({name, cls});
            continue;
        }
        int count = static_cast<int>(lexer_.take().bits);
        lexer_.expect(">");
        scope.ranges[name] = {first, count};
        for (int i = 0; i < count; ++i) function_->regs.push_back({name + std::to_string(i), cls});
    } while (lexer_.accept(","));
    lexer_.expect(";");
}

void Parser::parse_local_variable(Space space) {
    do {
        Variable variable = parse_variable(space);
        std::string unique = variable.name;
        if (function_->local_index.count(unique)) unique += "@" + std::to_string(function_->locals.size());
        scopes_.back().variables[variable.name] = unique;
        variable.name = unique;
        function_->local_index.emplace(unique, static_cast<int>(function_->locals.size()));
        function_->locals.push_back(std::move(variable));
    } while (lexer_.accept(","));
    lexer_.expect(";");
}

// .loc file line column [, function_name label, inlined_at file line column]
void Parser::parse_loc() {
    SourceLoc loc;
    loc.file = static_cast<int>(lexer_.take().bits);
    loc.line = static_cast<int>(lexer_.take().bits);
    lexer_.take();
    while (lexer_.accept(",")) {
        bool inlined = lexer_.take().text == "inlined_at";
        int file = static_cast<int>(lexer_.take().bits);
        if (lexer_.accept("+")) lexer_.take();
        if (!inlined) continue;
        loc.caller_file = file;
        loc.caller_line = static_cast<int>(lexer_.take().bits);
        lexer_.take();
    }
    current_loc_ = static_cast<int>(module_.locs.size());
    module_.locs.push_back(loc);
}

void Parser::parse_instruction(Token first, bool guarded, int guard, bool guard_negated) {
    Inst inst;
    inst.line = first.line;
    inst.loc = current_loc_;
    inst.scope = scopes_.back().id;
    inst.text_begin = first.begin;
    if (guarded) {
        inst.guard = guard;
        inst.guard_negated = guard_negated;
    }
    size_t at = first.text.find('.');
    inst.opcode = first.text.substr(0, at);
    while (at != std::string::npos) {
        size_t next = first.text.find('.', at + 1);
        inst.mods.push_back(first.text.substr(at + 1, next == std::string::npos ? next : next - at - 1));
        at = next;
    }
    while (!lexer_.peek().is(";")) {
        inst.operands.push_back(parse_operand());
        lexer_.accept(",");
        if (lexer_.peek().kind == Token::kEnd) lexer_.fail("instruction without `;`");
    }
    inst.text_end = lexer_.peek().end;
    lexer_.expect(";");
    function_->body.push_back(std::move(inst));
}

s64 Parser::parse_signed() {
    bool negative = lexer_.accept("-");
    if (!negative) lexer_.accept("+");
    s64 value = static_cast<s64>(lexer_.take().bits);
    return negative ? -value : value;
}

Operand Parser::parse_operand() {
    if (lexer_.accept("{")) return parse_group("}", Operand::kVector);
    if (lexer_.accept("(")) return parse_group(")", Operand::kList);
    if (lexer_.accept("[")) return parse_address();
    Operand operand;
    if (lexer_.accept("!")) {
        operand = parse_name();
        operand.negated = true;
        return operand;
    }
    bool negative = lexer_.accept("-"), inverted = !negative && lexer_.accept("~");
    if (lexer_.peek().kind == Token::kNumber) {
        Token number = lexer_.take();
        operand.kind = Operand::kImm;
        operand.is_float = number.is_float;
        operand.float_size = number.float_size;
        u64 flipped =
            number.is_float ? number.bits ^ (number.float_size == 4 ? 1ull << 31 : 1ull << 63) : ~number.bits + 1;
        operand.bits = negative ? flipped : inverted ? ~number.bits : number.bits;
        return operand;
    }
    operand = parse_name();
    if (lexer_.accept("|")) {
        Operand pair;
        pair.kind = Operand::kPair;
        pair.items = {std::move(operand), parse_name()};
        return pair;
    }
    return operand;
}

Operand Parser::parse_name() {
    Token token = lexer_.take();
    Operand operand;
    if (token.kind != Token::kWord) lexer_.fail("unexpected operand `" + token.text + "`");
    if (token.text == "_") {
        operand.kind = Operand::kSink;
        return operand;
    }
    operand.id = find_register(token.text);
    operand.kind = operand.id >= 0 ? Operand::kReg : Operand::kSymbol;
    operand.name = operand.id >= 0 ? token.text : find_variable(token.text);
    if (operand.kind == Operand::kSymbol && (lexer_.peek().is("+") || lexer_.peek().is("-")))
        operand.offset = parse_signed();
    return operand;
}

Operand Parser::parse_address() {
    Operand address;
    address.kind = Operand::kAddress;
    if (lexer_.peek().kind == Token::kNumber) {
        Operand base;
        base.kind = Operand::kImm;
        base.bits = lexer_.take().bits;
        address.items.push_back(base);
    } else {
        address.items.push_back(parse_name());
    }
    while (lexer_.peek().is("+") || lexer_.peek().is("-")) {
        lexer_.accept("+");
        address.offset += parse_signed();
    }
    if (lexer_.accept(",")) {  // tensor coordinates and the like: kept, for the message
        while (!lexer_.peek().is("]")) {
            address.items.push_back(parse_operand());
            lexer_.accept(",");
        }
    }
    lexer_.expect("]");
    return address;
}

Operand Parser::parse_group(const char* close, Operand::Kind kind) {
    Operand group;
    group.kind = kind;
    while (!lexer_.accept(close)) {
        group.items.push_back(parse_operand());
        lexer_.accept(",");
    }
    return group;
}

int Parser::find_register(const std::string& name) const {
    size_t digits = name.size();
    while (digits > 0 && name[digits - 1] >= '0' && name[digits - 1] <= '9') --digits;
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
        auto exact = scope->regs.find(name);
        if (exact != scope->regs.end()) return exact->second;
        if (digits == name.size()) continue;
        auto range = scope->ranges.find(name.substr(0, digits));
        if (range == scope->ranges.end()) continue;
        int index = std::stoi(name.substr(digits));
        if (index < range->second.second) return range->second.first + index;
    }
    return -1;
}

std::string Parser::find_variable(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
        auto it = scope->variables.find(name);
        if (it != scope->variables.end()) return it->second;
    }
    return name;
}

}  // namespace ptxsim
