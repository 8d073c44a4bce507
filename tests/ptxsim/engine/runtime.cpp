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

void Runtime::add_variable(FatBinary* binary, const void* host, const std::string& name, void** managed) {
    std::lock_guard<std::mutex> lock(mutex_);
    variables_[host] = {binary, name, managed};
}

void Runtime::place_managed(FatBinary* binary) {
    std::shared_ptr<Module> module = module_of(*binary);
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [host, v] : variables_)
        if (v.binary == binary && v.managed)
            *v.managed = reinterpret_cast<void*>(module_variable_address(module, v.name));
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

int Runtime::refuse(const std::string& call) {
    SimError error(ErrorKind::Unsupported, "Host code calls " + call + ", which is not simulated.");
    error.placed = true;
    if (!pending) pending = std::make_unique<SimError>(error);
    return fail(kCudaNotSupported);
}

int Runtime::take_last_error() {
    int code = last_error_;
    last_error_ = kCudaSuccess;
    return code;
}

namespace {
int code_of(const SimError& error, bool device) {
    if (!device) return kCudaNoDevice;
    auto says = [&](const char* word) { return error.message.find(word) != std::string::npos; };
    if (error.kind == ErrorKind::LaunchLimit)
        return says("cooperative launch") ? kCudaCooperativeLaunchTooLarge
               : says("cluster")          ? kCudaInvalidClusterSize
               : says("registers")        ? kCudaLaunchOutOfResources
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

std::shared_ptr<Module> Runtime::module_of(FatBinary& binary) {
    const DeviceProfile& p = *device().profile;
    int arch = p.major * 10 + p.minor;
    std::shared_ptr<Module>& module = binary.of_device[arch];
    if (module) return module;
    std::string text = extract_ptx(binary.data, arch);
    std::shared_ptr<Module>& parsed = binary.of_ptx[text];
    if (!parsed) parsed = parse_ptx(on_ptx ? on_ptx(text) : text);
    return module = parsed;
}

std::shared_ptr<Program> Runtime::program(HostFunction& f) {
    Device& d = device();
    std::shared_ptr<Module> module = module_of(*f.binary);
    std::shared_ptr<Program>& program = f.programs[module.get()];
    if (!program) program = decode_kernel(module, f.name);
    if (program->registers == 0) {
        auto found = probe ? probe(module->text, f.name, d.profile->name) : std::make_pair(1, 0);
        program->registers = found.first;
        program->spill_bytes = found.second;
    }
    return program;
}

void Runtime::launch(const void* host, const u32* grid, const u32* block, void** args, u64 shared,
                     const LaunchOptions& options) {
    HostFunction* f = function(host);
    if (!f) throw SimError(ErrorKind::BadProgram, "Host code launches a function that is no registered kernel.");
    std::shared_ptr<Program> p = program(*f);
    LaunchConfig config;
    std::copy(grid, grid + 3, config.grid);
    std::copy(block, block + 3, config.block);
    config.dynamic_shared = static_cast<u32>(shared);
    config.cooperative = options.cooperative;
    config.programmatic = options.programmatic;
    config.stream = options.stream;
    config.large_cluster = f->large_cluster;
    std::copy(options.cluster, options.cluster + 3, config.cluster);
    config.params.resize(p->param_bytes);
    for (size_t i = 0; i < p->params.size(); ++i)
        std::memcpy(config.params.data() + p->params[i].offset, args[i], p->params[i].size);
    if (capture_ && capture_->stream == options.stream) capture_->graph.push_back({f, config});
    else run({f, config});
}

void Runtime::run(const PreparedLaunch& launch) {
    HostFunction& f = *launch.function;
    std::shared_ptr<Program> p = program(f);
    p->max_dynamic_shared = f.dynamic_shared_limit;
    reports.emplace_back(f.name, device().launch(*p, launch.config));
    if (reports.size() > 4096) reports.erase(reports.begin());
}

// A graph as a whole depends on what came before it in the stream, as any launch does.
void Runtime::run(const Graph& graph, const void* stream) {
    for (size_t i = 0; i < graph.size(); ++i) {
        PreparedLaunch launch = graph[i];
        launch.config.stream = stream;
        launch.config.programmatic &= i > 0;
        run(launch);
    }
}

int Runtime::synchronise() {
    if (capture_) {
        capture_->broken = true;
        return fail(kCudaStreamCaptureUnsupported);
    }
    if (device_) device_->synchronise();
    return kCudaSuccess;
}

Capture Runtime::end_capture() {
    Capture capture = std::move(*capture_);
    capture_.reset();
    return capture;
}

u64 Runtime::variable_address(const void* host, u64* bytes) {
    HostVariable variable;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = variables_.find(host);
        if (found == variables_.end()) return 0;
        variable = found->second;
    }
    return module_variable_address(module_of(*variable.binary), variable.name, bytes);
}

void* Runtime::allocate(u64 bytes, MemoryKind kind, const char* call) {
    std::string name = std::string(call) + "(" + std::to_string(bytes) + ")";
    AllocationPtr a = MemoryMap::instance().create(bytes, name, kind == MemoryKind::Device, false);
    std::lock_guard<std::mutex> lock(mutex_);
    allocations_[a->base] = {a, kind};
    return reinterpret_cast<void*>(a->base);
}

void Runtime::register_host(void* pointer, u64 bytes) {
    u64 base = reinterpret_cast<u64>(pointer);
    std::string name = "cudaHostRegister(" + std::to_string(bytes) + ")";
    AllocationPtr a = MemoryMap::instance().adopt(base, bytes, name, true, true);
    std::lock_guard<std::mutex> lock(mutex_);
    allocations_[base] = {a, MemoryKind::RegisteredHost};
}

bool Runtime::release(void* pointer, MemoryKind kind) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = allocations_.find(reinterpret_cast<u64>(pointer));
    if (found == allocations_.end() || found->second.kind != kind) return false;
    MemoryMap::instance().remove(found->first);
    allocations_.erase(found);
    return true;
}

OwnedMemory Runtime::owner_of(const void* pointer) {
    u64 address = reinterpret_cast<u64>(pointer);
    std::lock_guard<std::mutex> lock(mutex_);
    auto above = allocations_.upper_bound(address);
    if (above == allocations_.begin()) return {};
    const OwnedMemory& memory = std::prev(above)->second;
    return memory.allocation->contains(address, 1) ? memory : OwnedMemory{};
}

u64 Runtime::allocated_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    u64 bytes = 0;
    for (const auto& [base, memory] : allocations_)
        if (memory.kind == MemoryKind::Device || memory.kind == MemoryKind::Managed) bytes += memory.allocation->size;
    return bytes;
}

}  // namespace ptxsim
