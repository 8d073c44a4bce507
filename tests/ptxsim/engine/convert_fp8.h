// The part of cvt that convert.cpp leaves to convert_fp8.cpp.
#pragma once

#include "control.h"

namespace ptxsim {

bool is_fp8_pair(const std::string& type);
// The destination's type has been taken, the source's has not.
void decode_cvt_fp8(Form& f, const std::string& to, bool relu);

}  // namespace ptxsim
