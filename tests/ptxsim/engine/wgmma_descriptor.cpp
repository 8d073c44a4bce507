#include "wgmma_descriptor.h"

#include "cta.h"

namespace ptxsim {

// "bits 13-0 start address, 29-16 leading dimension byte offset, 45-32 stride dimension byte offset, 51-49 matrix base
// offset, 63-62 swizzling mode", addresses and offsets in units of 16 bytes.
MatrixDescriptor read_descriptor(Warp& w, u64 bits, const char* what) {
    constexpr u64 kFields = 0xc00e'3fff'3fff'3fffull;
    constexpr u32 kWidths[] = {16, 128, 64, 32};
    std::string name = std::string("The descriptor ") + hex(bits) + " of " + what;
    if ((bits & ~kFields) && w.cta->checks(kCheckWgmma))
        w.fail(ErrorKind::Misaligned, name + " has bits set that belong to no field.");
    MatrixDescriptor d;
    d.start = static_cast<u32>(bits & 0x3fff) << 4;
    d.leading = static_cast<u32>(bits >> 16 & 0x3fff) << 4;
    d.stride = static_cast<u32>(bits >> 32 & 0x3fff) << 4;
    d.width = kWidths[bits >> 62];
    u32 base = static_cast<u32>(bits >> 49 & 7), mask = d.width / 16 - 1, row = d.start >> 7 & mask;
    if (row != (base & mask) && w.cta->checks(kCheckDescriptor))
        w.fail(ErrorKind::Misaligned, name + ": the swizzle's pattern starts at " + hex(d.start) + ", row " +
                                          std::to_string(row) + " of a pattern of " + std::to_string(d.width * 8) +
                                          " bytes, and the base offset says row " + std::to_string(base & mask) + ".");
    return d;
}

}  // namespace ptxsim
