// Ways out of the runtime, to the driver's functions and to modules loaded by hand: refused with what was asked for.
#include "runtime.h"

using ptxsim::Runtime;

namespace {

constexpr int kSymbolNotFound = 1;  // cudaDriverEntryPointSymbolNotFound

int refuse_driver(const char* call, const char* symbol, void** function, int* status) {
    if (function) *function = nullptr;
    if (status) *status = kSymbolNotFound;
    return Runtime::instance().refuse(std::string(call) + "(\"" + symbol + "\")");
}

}  // namespace

extern "C" {

int cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long, int* status) {
    return refuse_driver("cudaGetDriverEntryPoint", symbol, function, status);
}
int cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long, int* status) {
    return refuse_driver("cudaGetDriverEntryPointByVersion", symbol, function, status);
}

}  // extern "C"
