// PTX text → Module (PTX ISA 4: syntax, 5: state spaces and types, 11: directives).
#pragma once

#include <memory>
#include <string>

#include "ptx.h"

namespace ptxsim {

std::shared_ptr<Module> parse_ptx(std::string text);

// Bytes of a fundamental type such as ".u32" or "bf16x2"; 0 if it is not a type. Predicates have size 0 too.
int type_size(const std::string& type);
bool parse_reg_class(const std::string& type, RegClass& cls);

}  // namespace ptxsim
