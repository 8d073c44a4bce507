#include "parser.h"

#include "error.h"
#include "parser_detail.h"

namespace ptxsim {

std::string Module::text_of(const Inst& inst) const {
    std::string line;
    for (u32 i = inst.text_begin; i < inst.text_end; ++i) {
        char c = text[i] == '\n' || text[i] == '\t' ? ' ' : text[i];
        if (c != ' ' || (!line.empty() && line.back() != ' ')) line += c;
    }
    return line;
}

std::string Module::place(int file, int line) const {
    auto name = files.find(file);
    return (name == files.end() ? "file " + std::to_string(file) : name->second) + ":" + std::to_string(line);
}

std::string Module::source_of(const Inst& inst) const {
    return inst.loc < 0 ? "" : place(locs[inst.loc].file, locs[inst.loc].line);
}

std::string Module::full_source_of(const Inst& inst) const {
    std::string source = source_of(inst);
    if (source.empty() || locs[inst.loc].caller_line == 0) return source;
    return source + ", inlined at " + place(locs[inst.loc].caller_file, locs[inst.loc].caller_line);
}

int type_size(const std::string& type) {
    static const std::map<std::string, int> sizes{
        {"b8", 1},    {"u8", 1},  {"s8", 1},  {"b16", 2}, {"u16", 2},   {"s16", 2},    {"f16", 2},  {"bf16", 2},
        {"b32", 4},   {"u32", 4}, {"s32", 4}, {"f32", 4}, {"f16x2", 4}, {"bf16x2", 4}, {"tf32", 4}, {"u16x2", 4},
        {"s16x2", 4}, {"b64", 8}, {"u64", 8}, {"s64", 8}, {"f64", 8},   {"b128", 16}};
    auto it = sizes.find(!type.empty() && type[0] == '.' ? type.substr(1) : type);
    return it == sizes.end() ? 0 : it->second;
}

bool parse_reg_class(const std::string& type, RegClass& cls) {
    if (type == ".pred") {
        cls = RegClass::Pred;
        return true;
    }
    switch (type_size(type)) {
        case 1:
        case 2: cls = RegClass::B16; return true;
        case 4: cls = RegClass::B32; return true;
        case 8: cls = RegClass::B64; return true;
        case 16: cls = RegClass::B128; return true;
    }
    return false;
}

// PTX ISA 11: module-scope directives.
void Parser::parse() {
    bool external = false;
    while (lexer_.peek().kind != Token::kEnd) {
        if (lexer_.accept(";")) continue;
        if (lexer_.peek().kind != Token::kDirective)
            lexer_.fail("unexpected `" + lexer_.peek().text + "` at module scope");
        std::string name = lexer_.take().text;
        if (name == ".extern" || name == ".common") {
            external = true;
            continue;
        }
        if (name == ".visible" || name == ".weak") continue;
        if (name == ".global" || name == ".const" || name == ".shared") {
            Space space = name == ".global" ? Space::Global : name == ".const" ? Space::Const : Space::Shared;
            parse_module_variable(space, external);
        } else {
            parse_directive(name);
        }
        external = false;
    }
}

void Parser::parse_directive(const std::string& name) {
    if (name == ".entry" || name == ".func") return parse_function(name == ".entry");
    if (name == ".version" || name == ".address_size") {
        lexer_.take();
    } else if (name == ".target") {
        module_.target = lexer_.take().text;
        while (lexer_.accept(",")) lexer_.take();
    } else if (name == ".file") {
        int index = static_cast<int>(lexer_.take().bits);
        module_.files[index] = lexer_.take().text;
        while (lexer_.accept(",")) lexer_.take();
    } else if (name == ".loc") {
        parse_loc();
    } else if (name == ".section") {
        skip_section();
    } else if (name == ".pragma" || name == ".alias") {
        while (!lexer_.accept(";")) lexer_.take();
    } else {
        lexer_.fail("unknown directive `" + name + "`");
    }
}

void Parser::skip_section() {
    while (!lexer_.accept("{")) lexer_.take();
    while (!lexer_.accept("}")) lexer_.take();
}

void Parser::parse_module_variable(Space space, bool external) {
    do {
        Variable variable = parse_variable(space);
        variable.external |= external && variable.size == 0;
        module_.variable_index.emplace(variable.name, static_cast<int>(module_.variables.size()));
        module_.variables.push_back(std::move(variable));
    } while (lexer_.accept(","));
    lexer_.expect(";");
}

// PTX ISA 11.1: .entry name (params) directives {body}; .func (results) name (params) directives {body}.
void Parser::parse_function(bool entry) {
    Function function;
    function.entry = entry;
    function.line = lexer_.peek().line;
    while (lexer_.accept(".noreturn")) {}
    if (lexer_.peek().is("(")) function.results = parse_formals();
    function.name = lexer_.take().text;
    if (lexer_.peek().is("(")) function.params = parse_formals();
    parse_performance_directives(function);
    if (!lexer_.accept(";")) parse_body(function);

    auto known = module_.function_index.find(function.name);
    if (known == module_.function_index.end()) {
        module_.function_index.emplace(function.name, static_cast<int>(module_.functions.size()));
        module_.functions.push_back(std::move(function));
    } else if (function.defined) {
        module_.functions[known->second] = std::move(function);
    }
}

void Parser::parse_performance_directives(Function& function) {
    while (lexer_.peek().kind == Token::kDirective) {
        std::string name = lexer_.take().text;
        int product = 1;
        std::vector<u32> values;
        while (lexer_.peek().kind == Token::kNumber || lexer_.peek().kind == Token::kString) {
            values.push_back(static_cast<u32>(lexer_.take().bits));
            product *= static_cast<int>(values.back());
            if (!lexer_.accept(",")) break;
        }
        if (name == ".reqnctapercluster")
            for (size_t d = 0; d < 3; ++d) function.cluster[d] = d < values.size() ? values[d] : 1;
        if (name == ".maxclusterrank" && !values.empty()) function.max_cluster = values[0];
        if (name == ".maxntid" || name == ".reqntid") function.max_threads = product;
        if (name == ".pragma") lexer_.accept(";");
    }
}

std::vector<Variable> Parser::parse_formals() {
    std::vector<Variable> formals;
    lexer_.expect("(");
    while (!lexer_.accept(")")) {
        if (!lexer_.accept(".param") && !lexer_.accept(".reg")) lexer_.fail("expected a .param");
        formals.push_back(parse_variable(Space::Param));
        lexer_.accept(",");
    }
    return formals;
}

std::shared_ptr<Module> parse_ptx(std::string text) {
    auto module = std::make_shared<Module>();
    module->text = std::move(text);
    Parser(*module).parse();
    if (module->target.empty()) throw SimError(ErrorKind::BadProgram, "This is not PTX: it has no .target.");
    return module;
}

}  // namespace ptxsim
