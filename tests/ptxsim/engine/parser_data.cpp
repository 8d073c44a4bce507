// Variables and their initial values (PTX ISA 5.1, 5.4).
#include "parser_detail.h"

namespace ptxsim {

namespace {
void put_bytes(std::vector<u8>& bytes, u64 at, u64 value, int size) {
    if (bytes.size() < at + size) bytes.resize(at + size, 0);
    std::memcpy(bytes.data() + at, &value, size);
}

u64 literal_bits(const Token& number, int size) {
    if (!number.is_float || number.float_size == size) return number.bits;
    double value =
        number.float_size == 4 ? bit_cast<float>(static_cast<u32>(number.bits)) : bit_cast<double>(number.bits);
    return size == 4 ? bit_cast<u32>(static_cast<float>(value)) : bit_cast<u64>(value);
}
}  // namespace

// [.attribute(..)] [.align n] [.vN] .type [.ptr [.space] [.align n]] name [dims] [= init]
Variable Parser::parse_variable(Space space) {
    Variable variable;
    variable.space = space;
    int element = 0, vector = 1;
    while (lexer_.peek().kind == Token::kDirective) {
        std::string word = lexer_.take().text;
        if (word == ".align") {
            int align = static_cast<int>(lexer_.take().bits);
            if (element == 0) variable.align = align;
        } else if (word == ".attribute") {
            while (!lexer_.accept(")")) lexer_.take();
        } else if (word == ".v2" || word == ".v4") {
            vector = word[2] - '0';
        } else if (type_size(word) != 0) {
            element = type_size(word);
        } else if (word != ".ptr" && word != ".global" && word != ".shared" && word != ".const" && word != ".local") {
            lexer_.fail("unknown variable attribute `" + word + "`");
        }
    }
    variable.name = lexer_.take().text;
    u64 count = vector;
    while (lexer_.accept("[")) {
        if (lexer_.accept("]")) {
            count = 0;
            variable.external = true;
            continue;
        }
        count *= lexer_.take().bits;
        lexer_.expect("]");
    }
    if (variable.align < element * vector) variable.align = element * vector;
    if (lexer_.accept("=")) parse_initializer(variable, element);
    variable.size = count ? count * element : variable.init.size();
    if (!variable.init.empty()) variable.init.resize(variable.size, 0);
    return variable;
}

void Parser::parse_initializer(Variable& variable, int element) {
    u64 at = 0;
    parse_initial_value(variable, element, at);
}

void Parser::parse_initial_value(Variable& variable, int element, u64& at) {
    if (lexer_.accept("{")) {
        while (!lexer_.accept("}")) {
            parse_initial_value(variable, element, at);
            lexer_.accept(",");
        }
        return;
    }
    if (lexer_.peek().kind == Token::kWord) {  // the address of a symbol, maybe generic(symbol), maybe + offset
        bool generic = lexer_.accept("generic");
        if (generic) lexer_.expect("(");
        std::string symbol = lexer_.take().text;
        if (generic) lexer_.expect(")");
        s64 addend = lexer_.accept("+") ? static_cast<s64>(lexer_.take().bits) : 0;
        variable.relocs.emplace_back(at, symbol);
        variable.reloc_addends.push_back(addend);
        put_bytes(variable.init, at, 0, element);
    } else {
        bool negative = lexer_.accept("-");
        u64 bits = literal_bits(lexer_.take(), element);
        put_bytes(variable.init, at, negative ? ~bits + 1 : bits, element);
    }
    at += element;
}

}  // namespace ptxsim
