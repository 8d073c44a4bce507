// PTX tokens (PTX ISA 4.1-4.5). An instruction's dotted mnemonic is one token, as is a special register's name.
#pragma once

#include <string>

#include "base.h"

namespace ptxsim {

struct Token {
    enum Kind : u8 { kEnd, kWord, kDirective, kNumber, kString, kPunct };
    Kind kind = kEnd;
    std::string text;
    u64 bits = 0;  // of a number
    bool is_float = false;
    u8 float_size = 0;
    int line = 0;
    u32 begin = 0, end = 0;

    bool is(const char* s) const { return kind != kString && text == s; }
};

class Lexer {
  public:
    explicit Lexer(const std::string& text) : text_(text) { advance(); }
    const Token& peek() const { return token_; }
    Token take();
    bool accept(const char* s);
    void expect(const char* s);
    [[noreturn]] void fail(const std::string& why) const;

  private:
    void advance();
    void skip_blank();
    void scan_word();
    void scan_number();
    void scan_string();

    const std::string& text_;
    u32 at_ = 0;
    int line_ = 1;
    Token token_;
};

}  // namespace ptxsim
