#include "runtime.h"

#include <algorithm>

#include "decoder.h"
#include "fatbin.h"
#include "parser.h"

namespace ptxsim {

thread_local std::vector<CallConfiguration> Runtime::calls;

Runtime& Runtime::instance() {
    static Runtime* runtime = new Runtime;  // outlives every library's own exit handlers
    return *runtime;
}

FatBinary* Runtime::add_binary(const void* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    binaries_.push_back(std::make_unique<FatBinary>());
    binaries_.back()->data = data;
    return binaries_.back().get();
}

void Runtime::remove_binary(FatBinary* binary) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = functions_.begin(); it != functions_.end();)
        it = it->second.binary == binary ? functions_.erase(it) : std::next(it);
    for (auto it = variables_.begin(); it != variables_.end();)
        it = it->second.binary == binary ? variables_.erase(it) : std::next(it);
    binaries_.erase(
        std::remove_if(binaries_.begin(), binaries_.end(), [&](const auto& b) { return b.get() == binary; }),
        binaries_.end());
}

void Runtime::add_function(FatBinary* binary, const void* host, const std::string& name) {
    std::lock_guard<std::mutex> lock(mutex_);
    HostFunction& f = functions_[host];
    f = HostFunction{};
    f.binary = binary;
    f.name = name;
}

void Runtime::add_variable(FatBinary* binary, const void* host, const std::string& name) {
    std::lock_guard<std::mutex> lock(mutex_);
    variables_[host] = {binary, name};
}

HostFunction* Runtime::function(const void* host) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = functions_.find(host);
    return found == functions_.end() ? nullptr : &found->second;
}

Device& Runtime::device() {
    if (device_) return *device_;
    SimError error(ErrorKind::BadProgram,
                   "Host code uses the GPU, but no device is active: call it inside `with device:`.");
    error.placed = true;
    throw error;
}

int Runtime::fail(int code) {
    if (code != kCudaSuccess) last_error_ = code;
    return code;
}

int Runtime::take_last_error() {
    int code = last_error_;
    last_error_ = kCudaSuccess;
    return code;
}

namespace {
int code_of(const SimError& error, bool device) {
    if (!device) return kCudaNoDevice;
    if (error.kind == ErrorKind::LaunchLimit)
        return error.message.find("registers") != std::string::npos ? kCudaLaunchOutOfResources
                                                                    : kCudaInvalidConfiguration;
    return error.kind == ErrorKind::BadProgram ? kCudaInvalidSource : kCudaLaunchFailure;
}
}  // namespace

int Runtime::guarded(const std::function<void()>& action) {
    try {
        action();
        return kCudaSuccess;
    } catch (const SimError& error) {
        if (!pending) pending = std::make_unique<SimError>(error);
        return fail(code_of(error, has_device()));
    }
}

void Runtime::parse(FatBinary& binary) {
    if (binary.module) return;
    const DeviceProfile& p = *device().profile;
    std::string text = extract_ptx(binary.data, p.major * 10 + p.minor);
    binary.module = parse_ptx(on_ptx ? on_ptx(text) : text);
}

std::shared_ptr<Program> Runtime::program(HostFunction& f) {
    Device& d = device();
    parse(*f.binary);
    if (!f.program) f.program = decode_kernel(f.binary->module, f.name);
    if (f.program->registers == 0) {
        auto found = probe ? probe(f.binary->module->text, f.name, d.profile->name) : std::make_pair(1, 0);
        f.program->registers = found.first;
        f.program->spill_bytes = found.second;
    }
    return f.program;
}

void Runtime::launch(const void* host, const u32* grid, const u32* block, void** args, u64 shared) {
    HostFunction* f = function(host);
    if (!f) throw SimError(ErrorKind::BadProgram, "Host code launches a function that is no registered kernel.");
    std::shared_ptr<Program> p = program(*f);
    LaunchConfig config;
    std::copy(grid, grid + 3, config.grid);
    std::copy(block, block + 3, config.block);
    config.dynamic_shared = static_cast<u32>(shared);
    config.params.resize(p->param_bytes);
    for (size_t i = 0; i < p->params.size(); ++i)
        std::memcpy(config.params.data() + p->params[i].offset, args[i], p->params[i].size);
    p->max_dynamic_shared = f->dynamic_shared_limit;
    reports.emplace_back(f->name, device().launch(*p, config));
    if (reports.size() > 4096) reports.erase(reports.begin());
}

u64 Runtime::variable_address(const void* host, u64* bytes) {
    HostVariable variable;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = variables_.find(host);
        if (found == variables_.end()) return 0;
        variable = found->second;
    }
    parse(*variable.binary);
    return module_variable_address(variable.binary->module, variable.name, bytes);
}

void* Runtime::allocate(u64 bytes) {
    AllocationPtr a = MemoryMap::instance().create(bytes, "cudaMalloc(" + std::to_string(bytes) + ")", true, false);
    std::lock_guard<std::mutex> lock(mutex_);
    void* pointer = reinterpret_cast<void*>(a->base);
    allocations_[pointer] = a;
    return pointer;
}

bool Runtime::release(void* pointer) {
    if (!pointer) return true;
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = allocations_.find(pointer);
    if (found == allocations_.end()) return false;
    MemoryMap::instance().remove(found->second->base);
    allocations_.erase(found);
    return true;
}

void Runtime::mark_defined(u64 address, u64 bytes) {
    auto table = MemoryMap::instance().table();
    Allocation* a = find_allocation(*table, address);
    if (a && a->defined && a->contains(address, bytes)) std::memset(a->defined + (address - a->base), 1, bytes);
}

const char* cuda_error_name(int code) {
    switch (code) {
        case kCudaSuccess: return "cudaSuccess";
        case kCudaInvalidValue: return "cudaErrorInvalidValue";
        case kCudaMemoryAllocation: return "cudaErrorMemoryAllocation";
        case kCudaInvalidConfiguration: return "cudaErrorInvalidConfiguration";
        case kCudaInvalidSymbol: return "cudaErrorInvalidSymbol";
        case kCudaInvalidDeviceFunction: return "cudaErrorInvalidDeviceFunction";
        case kCudaNoDevice: return "cudaErrorNoDevice";
        case kCudaInvalidSource: return "cudaErrorInvalidSource";
        case kCudaNotSupported: return "cudaErrorNotSupported";
        case kCudaLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
        case kCudaLaunchFailure: return "cudaErrorLaunchFailure";
    }
    return "cudaErrorUnknown";
}

const char* cuda_error_text(int code) {
    switch (code) {
        case kCudaSuccess: return "no error";
        case kCudaInvalidValue: return "invalid argument";
        case kCudaMemoryAllocation: return "out of memory";
        case kCudaInvalidConfiguration: return "invalid configuration argument";
        case kCudaInvalidSymbol: return "invalid device symbol";
        case kCudaInvalidDeviceFunction: return "invalid device function";
        case kCudaNoDevice: return "no CUDA-capable device is detected";
        case kCudaInvalidSource: return "device kernel image is invalid";
        case kCudaNotSupported: return "operation not supported";
        case kCudaLaunchOutOfResources: return "too many resources requested for launch";
        case kCudaLaunchFailure: return "unspecified launch failure";
    }
    return "unknown error";
}

}  // namespace ptxsim
