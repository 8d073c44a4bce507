// Tensor maps (CUtensorMap) and the boxes that TMA cuts out of a tensor.
//
// A map is opaque to programs. Ours holds, behind a magic word, what cuTensorMapEncodeTiled was told: NVIDIA's own bits
// are not documented and not needed.
#pragma once

#include <vector>

#include "base.h"

namespace ptxsim {

// CUtensorMapDataType; the packed types of 4 and 6 bits after these belong to later architectures.
enum class TensorType : u8 { U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16, F32Ftz, TF32, TF32Ftz };
u32 tensor_type_bytes(TensorType type);

constexpr u32 kMaxRank = 5;
constexpr u32 kTensorMapBytes = 128, kTensorMapAlign = 64;

// The arguments of cuTensorMapEncodeTiled. Strides are in bytes; the innermost dimension has none.
struct TensorMapArguments {
    u32 type = 0, rank = 0;
    u64 base = 0;
    u64 dims[kMaxRank] = {}, strides[kMaxRank - 1] = {};
    u32 box[kMaxRank] = {}, element_strides[kMaxRank] = {1, 1, 1, 1, 1};
    u32 interleave = 0, swizzle = 0, l2_promotion = 0, fill = 0;
};

struct TensorMap {
    u64 magic = 0;
    TensorType type = TensorType::U8;
    u8 rank = 0, interleave = 0, swizzle = 0;  // swizzle: 0 none, 1 to 3: 16-byte pieces within 32, 64, 128 bytes
    u8 nan_fill = 0;
    u8 element_strides[kMaxRank] = {};
    u16 box[kMaxRank] = {};
    u32 last[kMaxRank] = {};  // of each dimension the last index: a dimension of 2^32 fits
    u64 base = 0, strides[kMaxRank - 1] = {};
    u64 check = 0;  // of all bytes before
};
static_assert(sizeof(TensorMap) <= kTensorMapBytes, "a CUtensorMap has 128 bytes");

// Throws BadProgram with the argument that breaks a rule of cuTensorMapEncodeTiled (cuda.h).
TensorMap encode_tensor_map(const TensorMapArguments& arguments);
void write_tensor_map(const TensorMap& map, u8* to);
// False if the bytes are no map that encode_tensor_map made.
bool read_tensor_map(const u8* from, TensorMap& map);
bool begins_tensor_map(const u8* bytes);

// One row of a box: its bytes [begin, end) lie in the tensor, the first of them at `global`; the others are filled.
struct BoxRow {
    u64 global = 0;
    u32 begin = 0, end = 0;
};

// The bytes of a copy, row by row as they lie in shared memory.
struct Box {
    std::vector<BoxRow> rows;
    u32 row_bytes = 0;
    u8 swizzle = 0;
    bool nan_fill = false;
    TensorType type = TensorType::U8;
    u32 bytes() const { return static_cast<u32>(rows.size()) * row_bytes; }
    u64 global_bytes() const {  // those that lie in the tensor
        u64 sum = 0;
        for (const BoxRow& row : rows) sum += row.end - row.begin;
        return sum;
    }
};

// "The coordinates are signed": what lies outside the tensor in any dimension is fill.
Box tile_box(const TensorMap& map, const s32* coordinates);
// A copy of `bytes` bytes without a map.
Box line_box(u64 global, u32 bytes);

// TMA's swizzle acts on the address in shared memory: bits [4, 4 + swizzle) ^= bits [7, 7 + swizzle).
inline u32 swizzled(u32 address, u32 swizzle) { return address ^ (address >> 7 & ((1u << swizzle) - 1)) << 4; }

// What a fill of the type looks like in one row, and how TMA rounds elements it loads (.tf32, .ftz).
void fill_row(const Box& box, u8* row);
void round_elements(TensorType type, u8* bytes, u32 count);

}  // namespace ptxsim
