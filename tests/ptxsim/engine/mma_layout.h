// Where mma.sync fragments live in their matrices (PTX ISA 9.7.14.5): (lane, element) → (row, column).
#pragma once

namespace ptxsim {

struct Position { int row, col; };

// groupID = laneid >> 2, threadID_in_group = laneid % 4. Every shape repeats 8-row by (4 x per_register)-column tiles:
// A: registers go down the rows first, then along k. B: along k. C: 8 rows a pair.
inline Position a_position(int lane, int element, int per_register, int rows) {
    int reg = element / per_register, within = element % per_register, tiles = rows / 8;
    return {lane / 4 + 8 * (reg % tiles), lane % 4 * per_register + within + 4 * per_register * (reg / tiles)};
}

inline Position b_position(int lane, int element, int per_register) {
    int reg = element / per_register, within = element % per_register;
    return {lane % 4 * per_register + within + 4 * per_register * reg, lane / 4};
}

inline Position c_position(int lane, int element) { return {lane / 4 + 8 * (element / 2), lane % 4 * 2 + element % 2}; }

}  // namespace ptxsim
