// The CUDA runtime stand-in's state: what host code registered and launched, on which device, and what went wrong.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "device.h"
#include "runtime_graph.h"

namespace ptxsim {

// Values of cudaError_t the stand-in returns.
enum CudaError : int {
    kCudaSuccess = 0,
    kCudaInvalidValue = 1,
    kCudaMemoryAllocation = 2,
    kCudaInvalidConfiguration = 9,
    kCudaInvalidPitchValue = 12,
    kCudaInvalidSymbol = 13,
    kCudaInvalidMemcpyDirection = 21,
    kCudaInvalidDeviceFunction = 98,
    kCudaNoDevice = 100,
    kCudaInvalidDevice = 101,
    kCudaInvalidSource = 300,
    kCudaInvalidResourceHandle = 400,
    kCudaLaunchOutOfResources = 701,
    kCudaHostMemoryAlreadyRegistered = 712,
    kCudaHostMemoryNotRegistered = 713,
    kCudaLaunchFailure = 719,
    kCudaCooperativeLaunchTooLarge = 720,
    kCudaNotSupported = 801,
    kCudaStreamCaptureUnsupported = 900,
    kCudaStreamCaptureInvalidated = 901,
    kCudaStreamCaptureUnmatched = 903,
    kCudaInvalidClusterSize = 912,
};
const char* cuda_error_name(int code);
const char* cuda_error_text(int code);

struct FatBinary {
    const void* data = nullptr;
    // Parsed when first needed. Which PTX a device runs follows its architecture.
    std::map<int, std::shared_ptr<Module>> of_device;
    std::map<std::string, std::shared_ptr<Module>> of_ptx;
};

struct HostFunction {
    FatBinary* binary = nullptr;
    std::string name;
    std::map<const Module*, std::shared_ptr<Program>> programs;  // decoded when first needed
    u32 dynamic_shared_limit = 0;
    bool large_cluster = false;  // cudaFuncAttributeNonPortableClusterSizeAllowed
};

// What the attributes of a launch ask for.
struct LaunchOptions {
    bool cooperative = false, programmatic = false;
    u32 cluster[3] = {};
    const void* stream = nullptr;
};

struct HostVariable {
    FatBinary* binary = nullptr;
    std::string name;
    void** managed = nullptr;  // where host code looks up the address of a __managed__ variable
};

struct CallConfiguration {
    u32 grid[3], block[3];
    u64 shared = 0;
    void* stream = nullptr;
};

// Who made a piece of memory; the values up to kManaged are those of cudaMemoryType.
enum class MemoryKind : u8 { Unregistered, Host, Device, Managed, RegisteredHost };

struct OwnedMemory {
    AllocationPtr allocation;
    MemoryKind kind = MemoryKind::Unregistered;
};

class Runtime {
  public:
    static Runtime& instance();

    FatBinary* add_binary(const void* data);
    void remove_binary(FatBinary* binary);
    void add_function(FatBinary* binary, const void* host, const std::string& name);
    void add_variable(FatBinary* binary, const void* host, const std::string& name, void** managed = nullptr);
    // Tells host code where the binary's __managed__ variables are.
    void place_managed(FatBinary* binary);
    HostFunction* function(const void* host);

    // Runs an action that may throw; its error becomes the pending one, and a code for the host.
    int guarded(const std::function<void()>& action);
    int fail(int code);
    // For a call that is not simulated: the error names it, and the host gets cudaErrorNotSupported.
    int refuse(const std::string& call);
    int take_last_error();
    int peek_last_error() const { return last_error_; }

    Device& device();  // throws if none is active
    // The host has waited for the device. It may not while a stream captures, whose work has not begun.
    int synchronise();
    bool has_device() const { return device_ != nullptr; }
    void set_device(std::shared_ptr<Device> device) { device_ = std::move(device); }
    std::shared_ptr<Module> module_of(FatBinary& binary);
    std::shared_ptr<Program> program(HostFunction& function);
    void launch(const void* host, const u32* grid, const u32* block, void** args, u64 shared,
                const LaunchOptions& options);
    void run(const Graph& graph, const void* stream);
    u64 variable_address(const void* host, u64* bytes);

    const Capture* capture() const { return capture_.get(); }
    void begin_capture(const void* stream) { capture_ = std::make_unique<Capture>(Capture{stream, {}}); }
    Capture end_capture();

    // Memory of the device is undefined until it is written. Of what the host writes directly nobody can tell, so
    // pinned and managed memory is defined from the start.
    void* allocate(u64 bytes, MemoryKind kind, const char* call);
    void register_host(void* pointer, u64 bytes);
    // False if no piece of memory of that kind begins at the pointer.
    bool release(void* pointer, MemoryKind kind);
    OwnedMemory owner_of(const void* pointer);
    u64 allocated_bytes();

    std::unique_ptr<SimError> pending;
    std::function<std::pair<int, int>(const std::string& text, const std::string& kernel, const std::string& arch)>
        probe;
    std::function<std::string(const std::string& text)> on_ptx;  // may change what is about to be parsed
    std::vector<std::pair<std::string, LaunchReport>> reports;
    static thread_local std::vector<CallConfiguration> calls;

  private:
    void run(const PreparedLaunch& launch);

    std::shared_ptr<Device> device_;
    std::unique_ptr<Capture> capture_;  // of the stream that captures
    std::mutex mutex_;
    std::vector<std::unique_ptr<FatBinary>> binaries_;
    std::map<const void*, HostFunction> functions_;
    std::map<const void*, HostVariable> variables_;
    std::map<u64, OwnedMemory> allocations_;  // by address
    int last_error_ = 0;
};

}  // namespace ptxsim
