#include "fatbin.h"

#include "error.h"

namespace ptxsim {

namespace {

constexpr u32 kWrapperMagic = 0x466243b1, kMagic = 0xba55ed50;
constexpr u16 kPtxKind = 1;

struct Wrapper {
    u32 magic, version;
    const void* data;
    const void* unused;
};
struct Header {
    u32 magic;
    u16 version, header_bytes;
    u64 bytes;
};
struct Entry {
    u16 kind, unknown;
    u32 header_bytes;
    u64 bytes;
    u32 compressed_bytes, unknown2;
    u16 minor, major;
    u32 arch;
};

bool is_text(const u8* data, u64 bytes) {
    std::string head(reinterpret_cast<const char*>(data), bytes < 4096 ? bytes : 4096);
    return head.find(".version") != std::string::npos;
}

}  // namespace

std::string extract_ptx(const void* fatbin, int arch) {
    const Wrapper* wrapper = static_cast<const Wrapper*>(fatbin);
    const u8* data = static_cast<const u8*>(wrapper->magic == kWrapperMagic ? wrapper->data : fatbin);
    const Header* header = reinterpret_cast<const Header*>(data);
    if (header->magic != kMagic)
        throw SimError(ErrorKind::BadProgram, "A registered fat binary has an unknown format.");
    std::string best;
    u32 best_arch = 0;
    bool compressed = false;
    for (const u8 *at = data + header->header_bytes, *end = at + header->bytes; at < end;) {
        const Entry* entry = reinterpret_cast<const Entry*>(at);
        const u8* body = at + entry->header_bytes;
        if (entry->kind == kPtxKind && entry->arch <= static_cast<u32>(arch) && entry->arch >= best_arch) {
            if (is_text(body, entry->bytes)) {
                best.assign(reinterpret_cast<const char*>(body), entry->bytes);
                best_arch = entry->arch;
            } else {
                compressed = true;
            }
        }
        at = body + entry->bytes;
    }
    if (best.empty()) {
        throw SimError(ErrorKind::BadProgram,
                       compressed ? "The embedded PTX is compressed: compile with nvcc --no-compress."
                                  : "A fat binary holds no PTX for sm_" + std::to_string(arch) +
                                        " or older: compile with -gencode arch=compute_80,code=compute_80.");
    }
    best.erase(best.find_last_not_of('\0') + 1);
    return best;
}

}  // namespace ptxsim
