// The container nvcc embeds: magic 0xBA55ED50, then entries with a header each. PTX must be there uncompressed.
#pragma once

#include <string>

namespace ptxsim {

// The PTX for the newest architecture that is not above `arch` (80, 90, 120); throws BadProgram without one.
std::string extract_ptx(const void* fatbin, int arch);

}  // namespace ptxsim
