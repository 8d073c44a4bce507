// Special registers (PTX ISA 10) as cells preloaded when a warp starts; the clocks are read by their own op.
#pragma once

#include <string>

#include "program.h"

namespace ptxsim {

// The cell offset of a special register such as "%tid.x"; false if it is not one (or is a clock).
bool special_register(const std::string& name, Ref& ref, int& bytes);
void fill_special_registers(Warp& w);

}  // namespace ptxsim
