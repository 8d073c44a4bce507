// The arithmetic of atom and red, for those who reduce by other means.
#pragma once

#include <string>

#include "base.h"

namespace ptxsim {

// The index of an operation (add, min, max, inc, dec, and, or, xor) and of a type; -1 if there is none.
int reduction_operation(const std::string& name);
int reduction_type(const std::string& name);
// *to = operation(*to, value)
void reduce(u8 operation, u8 type, u8* to, const u8* value, u32 bytes);
// Atomically: *address = operation(*address, value).
void reduce_global(u8 operation, u8 type, u64 address, const u8* value, u32 bytes);

}  // namespace ptxsim
