#include "lexer.h"

#include <cctype>
#include <cstdlib>

#include "error.h"

namespace ptxsim {

namespace {
bool word_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%'; }
}  // namespace

Token Lexer::take() {
    Token taken = std::move(token_);
    advance();
    return taken;
}

bool Lexer::accept(const char* s) {
    if (!token_.is(s)) return false;
    advance();
    return true;
}

void Lexer::expect(const char* s) {
    if (!accept(s)) fail(std::string("expected `") + s + "`, found `" + token_.text + "`");
}

void Lexer::fail(const std::string& why) const {
    SimError error(ErrorKind::BadProgram, "PTX line " + std::to_string(token_.line) + ": " + why + ".");
    error.ptx_line = token_.line;
    error.paragraph = error.message;
    throw error;
}

void Lexer::skip_blank() {
    for (; at_ < text_.size(); ++at_) {
        char c = text_[at_];
        if (c == '\n') ++line_;
        if (std::isspace(static_cast<unsigned char>(c)) || c == '\0') continue;
        if (c == '/' && text_.compare(at_, 2, "//") == 0) {
            while (at_ + 1 < text_.size() && text_[at_ + 1] != '\n') ++at_;
        } else if (c == '/' && text_.compare(at_, 2, "/*") == 0) {
            for (at_ += 2; at_ < text_.size() && text_.compare(at_, 2, "*/") != 0; ++at_) line_ += text_[at_] == '\n';
            ++at_;
        } else {
            return;
        }
    }
}

void Lexer::scan_word() {
    while (at_ < text_.size()) {
        char c = text_[at_];
        bool dotted = c == '.' && at_ + 1 < text_.size() && word_char(text_[at_ + 1]);
        bool scoped = c == ':' && at_ + 2 < text_.size() && text_[at_ + 1] == ':' && word_char(text_[at_ + 2]);
        if (!word_char(c) && !dotted && !scoped) break;
        at_ += scoped ? 2 : 1;
    }
}

void Lexer::scan_number() {
    const char* start = text_.c_str() + at_;
    char* stop = nullptr;
    token_.kind = Token::kNumber;
    char tag = start[0] == '0' ? static_cast<char>(std::tolower(static_cast<unsigned char>(start[1]))) : '\0';
    if (tag == 'f' || tag == 'd') {
        token_.is_float = true;
        token_.float_size = tag == 'f' ? 4 : 8;
        const std::string digits(start + 2, tag == 'f' ? 8 : 16);
        token_.bits = std::strtoull(digits.c_str(), nullptr, 16);
        at_ += 2 + static_cast<u32>(digits.size());
        return;
    }
    token_.bits = tag == 'b' ? std::strtoull(start + 2, &stop, 2) : std::strtoull(start, &stop, 0);
    if (tag != 'x' && (*stop == '.' || *stop == 'e' || *stop == 'E')) {
        token_.bits = bit_cast<u64>(std::strtod(start, &stop));
        token_.is_float = true;
        token_.float_size = 8;
    }
    if (*stop == 'U') ++stop;
    at_ += static_cast<u32>(stop - start);
}

void Lexer::scan_string() {
    token_.kind = Token::kString;
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) token_.text += text_[at_];
    ++at_;
}

void Lexer::advance() {
    skip_blank();
    token_ = Token{};
    token_.line = line_;
    token_.begin = at_;
    if (at_ >= text_.size()) return;
    char c = text_[at_];
    if (c == '"') {
        scan_string();
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
        scan_number();
    } else if (word_char(c)) {
        token_.kind = Token::kWord;
        scan_word();
    } else if (c == '.' && at_ + 1 < text_.size() && word_char(text_[at_ + 1])) {
        token_.kind = Token::kDirective;
        for (++at_; at_ < text_.size() && (word_char(text_[at_]) || text_[at_] == ':'); ++at_) {}
    } else {
        token_.kind = Token::kPunct;
        ++at_;
    }
    if (token_.kind != Token::kString) token_.text = text_.substr(token_.begin, at_ - token_.begin);
    token_.end = at_;
}

}  // namespace ptxsim
