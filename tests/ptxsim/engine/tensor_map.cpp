#include "tensor_map.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "error.h"

namespace ptxsim {

namespace {

constexpr u64 kMagic = 0x70616d2d6d697378;  // "xsim-map"
constexpr u32 kTypes = 13, kPackedTypes = 16;
constexpr u32 kTypeBytes[kTypes] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
constexpr u32 kSwizzles = 4, kLaterSwizzles = 7;

bool is_floating(TensorType type) { return type >= TensorType::F16; }

[[noreturn]] void refuse(const std::string& what) {
    SimError error(ErrorKind::BadProgram, "cuTensorMapEncodeTiled: " + what + ".");
    error.placed = true;
    throw error;
}

std::string number(u64 n) { return std::to_string(n); }
std::string element(const char* array, u32 i, u64 value) {
    return std::string(array) + "[" + number(i) + "] is " + number(value);
}

void check_enumerations(const TensorMapArguments& a) {
    if (a.type >= kPackedTypes) refuse("tensorDataType is " + number(a.type) + ", which is no CUtensorMapDataType");
    if (a.type >= kTypes) refuse("tensorDataType " + number(a.type) + " is a packed type of sm_100, not simulated");
    if (a.interleave > 2) refuse("interleave is " + number(a.interleave) + ", which is no CUtensorMapInterleave");
    if (a.swizzle >= kLaterSwizzles) refuse("swizzle is " + number(a.swizzle) + ", which is no CUtensorMapSwizzle");
    if (a.swizzle >= kSwizzles) refuse("swizzle " + number(a.swizzle) + " is a mode of sm_100, not simulated");
    if (a.l2_promotion > 3) refuse("l2Promotion is " + number(a.l2_promotion) + ", which is no CUtensorMapL2promotion");
    if (a.fill > 1) refuse("oobFill is " + number(a.fill) + ", which is no CUtensorMapFloatOOBfill");
    if (a.fill && !is_floating(static_cast<TensorType>(a.type)))
        refuse("oobFill is NAN_REQUEST_ZERO_FMA, which needs a floating-point tensorDataType");
}

void check_global(const TensorMapArguments& a) {
    u64 align = a.interleave == 2 ? 32 : 16;
    if (a.base % align) refuse("globalAddress " + hex(a.base) + " is not a multiple of " + number(align));
    for (u32 i = 0; i < a.rank; ++i)
        if (a.dims[i] == 0 || a.dims[i] > 1ull << 32)
            refuse(element("globalDim", i, a.dims[i]) + ", it has to be 1 to 2^32");
    for (u32 i = 0; i + 1 < a.rank; ++i)
        if (a.strides[i] % align || a.strides[i] >= 1ull << 40)
            refuse(element("globalStrides", i, a.strides[i]) + ", it has to be a multiple of " + number(align) +
                   " and less than 2^40");
}

void check_box(const TensorMapArguments& a) {
    for (u32 i = 0; i < a.rank; ++i) {
        if (a.box[i] == 0 || a.box[i] > 256) refuse(element("boxDim", i, a.box[i]) + ", it has to be 1 to 256");
        bool ignored = i == 0 && a.interleave == 0;
        if (!ignored && (a.element_strides[i] == 0 || a.element_strides[i] > 8))
            refuse(element("elementStrides", i, a.element_strides[i]) + ", it has to be 1 to 8");
    }
    u32 inner = a.box[0] * kTypeBytes[a.type];
    if (a.interleave == 0 && inner % 16)
        refuse("boxDim[0] times the element's size is " + number(inner) + " bytes, it has to be a multiple of 16");
    u32 span = 16u << a.swizzle;
    if (a.interleave == 0 && a.swizzle && inner > span)
        refuse("boxDim[0] times the element's size is " + number(inner) + " bytes, the swizzle takes at most " +
               number(span));
}

u64 checksum(const TensorMap& map) {
    const u8* bytes = reinterpret_cast<const u8*>(&map);
    u64 sum = kMagic;
    for (size_t i = 0; i < offsetof(TensorMap, check); ++i) sum = mix(sum ^ bytes[i]);
    return sum;
}

}  // namespace

u32 tensor_type_bytes(TensorType type) { return kTypeBytes[static_cast<int>(type)]; }

TensorMap encode_tensor_map(const TensorMapArguments& a) {
    check_enumerations(a);
    if (a.rank == 0 || a.rank > kMaxRank) refuse("tensorRank is " + number(a.rank) + ", it has to be 1 to 5");
    if (a.interleave && a.rank < 3) refuse("tensorRank is " + number(a.rank) + ", an interleaved layout needs 3 to 5");
    if (a.interleave == 2 && a.swizzle != 1) refuse("INTERLEAVE_32B needs SWIZZLE_32B");
    check_global(a);
    check_box(a);
    TensorMap map;
    std::memset(static_cast<void*>(&map), 0, sizeof map);  // padding is part of the checksum
    map.magic = kMagic;
    map.type = static_cast<TensorType>(a.type);
    map.rank = static_cast<u8>(a.rank);
    map.interleave = static_cast<u8>(a.interleave);
    map.swizzle = static_cast<u8>(a.swizzle);
    map.nan_fill = static_cast<u8>(a.fill);
    map.base = a.base;
    for (u32 i = 0; i < a.rank; ++i) {
        map.last[i] = static_cast<u32>(a.dims[i] - 1);
        map.box[i] = static_cast<u16>(a.box[i]);
        map.element_strides[i] = static_cast<u8>(i == 0 && !a.interleave ? 1 : a.element_strides[i]);
        if (i + 1 < a.rank) map.strides[i] = a.strides[i];
    }
    map.check = checksum(map);
    return map;
}

void write_tensor_map(const TensorMap& map, u8* to) {
    std::memset(to, 0, kTensorMapBytes);
    std::memcpy(to, &map, sizeof map);
}

bool begins_tensor_map(const u8* bytes) {
    u64 word;
    std::memcpy(&word, bytes, sizeof word);
    return word == kMagic;
}

bool read_tensor_map(const u8* from, TensorMap& map) {
    std::memcpy(static_cast<void*>(&map), from, sizeof map);
    return map.magic == kMagic && map.check == checksum(map);
}

namespace {

// Indices of the box along one dimension: ceil(box / stride) of them, `step` apart.
u32 box_count(const TensorMap& map, u32 d) {
    return (map.box[d] + map.element_strides[d] - 1u) / map.element_strides[d];
}

// The part of a row that lies in the tensor, given that its outer coordinates do.
BoxRow inner_row(const TensorMap& map, s64 first, u64 address) {
    s64 size = tensor_type_bytes(map.type), limit = static_cast<s64>(map.last[0]) + 1;
    s64 from = std::max<s64>(first, 0), to = std::min<s64>(first + map.box[0], limit);
    if (from >= to) return {};
    return {address + static_cast<u64>(from * size), static_cast<u32>((from - first) * size),
            static_cast<u32>((to - first) * size)};
}

}  // namespace

Box tile_box(const TensorMap& map, const s32* coordinates) {
    Box box;
    box.row_bytes = map.box[0] * tensor_type_bytes(map.type);
    box.swizzle = map.swizzle;
    box.nan_fill = map.nan_fill;
    box.type = map.type;
    u32 index[kMaxRank] = {}, rows = 1;
    for (u32 d = 1; d < map.rank; ++d) rows *= box_count(map, d);
    for (u32 row = 0; row < rows; ++row) {
        bool inside = true;
        u64 address = map.base;
        for (u32 d = 1; d < map.rank; ++d) {
            s64 at = static_cast<s64>(coordinates[d]) + static_cast<s64>(index[d]) * map.element_strides[d];
            inside &= at >= 0 && at <= static_cast<s64>(map.last[d]);
            address += static_cast<u64>(at) * map.strides[d - 1];
        }
        box.rows.push_back(inside ? inner_row(map, coordinates[0], address) : BoxRow{});
        for (u32 d = 1; d < map.rank && ++index[d] == box_count(map, d); ++d) index[d] = 0;
    }
    return box;
}

Box line_box(u64 global, u32 bytes) {
    Box box;
    box.row_bytes = bytes;
    box.rows.push_back({global, 0, bytes});
    return box;
}

void fill_row(const Box& box, u8* row) {
    std::memset(row, 0, box.row_bytes);
    if (!box.nan_fill) return;
    u32 size = tensor_type_bytes(box.type);
    const u64 quiet = box.type == TensorType::F16 || box.type == TensorType::BF16 ? 0x7fff
                      : size == 4                                                 ? 0x7fff'ffff
                                                                                  : 0x7fff'ffff'ffff'ffff;
    for (u32 at = 0; at < box.row_bytes; at += size) std::memcpy(row + at, &quiet, size);
}

// "TMA converts": .ftz flushes subnormals, .tf32 keeps ten bits of the mantissa. How ties round is not documented.
void round_elements(TensorType type, u8* bytes, u32 count) {
    bool flush = type == TensorType::F32Ftz || type == TensorType::TF32Ftz;
    bool round = type == TensorType::TF32 || type == TensorType::TF32Ftz;
    if (!flush && !round) return;
    for (u32 at = 0; at + 4 <= count; at += 4) {
        u32 x;
        std::memcpy(&x, bytes + at, 4);
        u32 exponent = x >> 23 & 255;
        if (flush && exponent == 0) x &= 0x8000'0000u;
        if (round && exponent != 255) x = (x + 0xfff + (x >> 13 & 1)) & ~0x1fffu;
        std::memcpy(bytes + at, &x, 4);
    }
}

}  // namespace ptxsim
