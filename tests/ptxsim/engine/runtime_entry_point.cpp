// Ways out of the runtime, to the driver's functions: the encoder of tensor maps is ours, all others are refused with
// what was asked for.
#include "runtime.h"
#include "tensor_map.h"

using ptxsim::Runtime;
using ptxsim::u32;
using ptxsim::u64;
using ptxsim::u8;

namespace {

constexpr int kSuccess = 0, kSymbolNotFound = 1;  // cudaDriverEntryPointQueryResult
constexpr int kInvalidValue = 1;                  // CUDA_ERROR_INVALID_VALUE

// cuTensorMapEncodeTiled of the driver, CUDA 12.0 and later.
int encode_tiled(void* map, int type, u32 rank, void* address, const u64* dims, const u64* strides, const u32* box,
                 const u32* element_strides, int interleave, int swizzle, int promotion, int fill) {
    ptxsim::TensorMapArguments a;
    a.type = static_cast<u32>(type);
    a.rank = rank;
    a.base = reinterpret_cast<u64>(address);
    a.interleave = static_cast<u32>(interleave);
    a.swizzle = static_cast<u32>(swizzle);
    a.l2_promotion = static_cast<u32>(promotion);
    a.fill = static_cast<u32>(fill);
    for (u32 i = 0; i < rank && i < ptxsim::kMaxRank; ++i) {
        a.dims[i] = dims[i];
        a.box[i] = box[i];
        a.element_strides[i] = element_strides[i];
        if (i + 1 < rank && i + 1 < ptxsim::kMaxRank) a.strides[i] = strides[i];
    }
    int code = Runtime::instance().guarded([&] {
        if (reinterpret_cast<u64>(map) % ptxsim::kTensorMapAlign) {
            ptxsim::SimError error(ptxsim::ErrorKind::BadProgram, "cuTensorMapEncodeTiled: tensorMap " +
                                                                      ptxsim::hex(reinterpret_cast<u64>(map)) +
                                                                      " is not a multiple of 64.");
            error.placed = true;
            throw error;
        }
        write_tensor_map(encode_tensor_map(a), static_cast<u8*>(map));
    });
    return code ? kInvalidValue : kSuccess;
}

int find_driver_function(const char* call, const char* symbol, void** function, int* status) {
    bool known = std::string(symbol) == "cuTensorMapEncodeTiled";
    if (function) *function = known ? reinterpret_cast<void*>(&encode_tiled) : nullptr;
    if (status) *status = known ? kSuccess : kSymbolNotFound;
    if (known) return ptxsim::kCudaSuccess;
    return Runtime::instance().refuse(std::string(call) + "(\"" + symbol + "\")");
}

}  // namespace

extern "C" {

int cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long, int* status) {
    return find_driver_function("cudaGetDriverEntryPoint", symbol, function, status);
}
int cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long, int* status) {
    return find_driver_function("cudaGetDriverEntryPointByVersion", symbol, function, status);
}

}  // extern "C"
