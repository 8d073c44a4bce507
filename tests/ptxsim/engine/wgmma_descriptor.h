// The matrix descriptor of wgmma (PTX ISA 9.7.15.5.1) and where it puts a matrix in shared memory. All layouts are made
// of pieces of 16 bytes.
#pragma once

#include "base.h"

namespace ptxsim {

struct Warp;

struct MatrixDescriptor {
    u32 start = 0, leading = 0, stride = 0;  // bytes
    u32 width = 16;                          // of a row: 16 without a swizzle, or 32, 64, 128

    // K-major: row r (of M or N), and which half of the instruction's 32 bytes of K. Eight rows of `width` bytes make a
    // group; without a swizzle a group is eight pieces in a row, and the halves lie `leading` apart.
    u32 k_major(u32 r, u32 half) const {
        u32 at = start + r / 8 * stride + r % 8 * width;
        return swizzled(at + half * (width == 16 ? leading : 16));
    }
    // MN-major: row k, and which eight elements of M or N. A row holds width/16 pieces; the next ones lie `leading`
    // further, the next eight k `stride` further. Without a swizzle the two change roles.
    u32 mn_major(u32 k, u32 piece) const {
        u32 pieces = width / 16, along = piece / pieces, deep = k / 8;
        u32 at = start + piece % pieces * 16 + k % 8 * width;
        return swizzled(width == 16 ? at + along * stride + deep * leading : at + along * leading + deep * stride);
    }

  private:
    // Bits [4, 4 + b) ^= bits [7, 7 + b) of the address in shared memory, b = 1, 2, 3 for 32, 64, 128 bytes.
    u32 swizzled(u32 at) const { return at ^ ((at >> 3) & (width - 16)); }
};

// Checks the fields; `what` names the operand in an error.
MatrixDescriptor read_descriptor(Warp& w, u64 bits, const char* what);

}  // namespace ptxsim
