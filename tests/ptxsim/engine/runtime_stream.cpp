// Streams and events. Work is done when the call that asks for it returns, so streams order nothing that was not in
// order, and an event has happened as soon as it is recorded.
#include <algorithm>
#include <atomic>
#include <chrono>

#include "runtime.h"

using ptxsim::Runtime;
using ptxsim::u64;

namespace {

Runtime& runtime() { return Runtime::instance(); }

constexpr int kGreatestPriority = -5;
constexpr unsigned kDisableTiming = 2;  // cudaEventDisableTiming

struct Stream {
    unsigned flags = 0;
    int priority = 0;
    u64 id = 0;
};

// The handles 0, 1 and 2 are the default streams.
const Stream& stream_of(void* handle) {
    static const Stream default_stream;
    return reinterpret_cast<u64>(handle) <= 2 ? default_stream : *static_cast<Stream*>(handle);
}

// Times are the host's clock: how long the simulator took, not how long a GPU would.
struct Event {
    unsigned flags = 0;
    bool recorded = false;
    std::chrono::steady_clock::time_point time;
};

int record(void* event) {
    if (!event) return runtime().fail(ptxsim::kCudaInvalidResourceHandle);
    static_cast<Event*>(event)->time = std::chrono::steady_clock::now();
    static_cast<Event*>(event)->recorded = true;
    return ptxsim::kCudaSuccess;
}

}  // namespace

extern "C" {

int cudaStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
    static std::atomic<u64> created{2};
    if (!stream) return runtime().fail(ptxsim::kCudaInvalidValue);
    *stream = new Stream{flags, std::max(kGreatestPriority, std::min(priority, 0)), ++created};
    return ptxsim::kCudaSuccess;
}
int cudaStreamCreateWithFlags(void** stream, unsigned flags) { return cudaStreamCreateWithPriority(stream, flags, 0); }
int cudaStreamCreate(void** stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
int cudaStreamDestroy(void* stream) {
    if (reinterpret_cast<u64>(stream) <= 2) return runtime().fail(ptxsim::kCudaInvalidResourceHandle);
    delete static_cast<Stream*>(stream);
    return ptxsim::kCudaSuccess;
}
int cudaStreamGetFlags(void* stream, unsigned* flags) {
    *flags = stream_of(stream).flags;
    return ptxsim::kCudaSuccess;
}
int cudaStreamGetPriority(void* stream, int* priority) {
    *priority = stream_of(stream).priority;
    return ptxsim::kCudaSuccess;
}
int cudaStreamGetId(void* stream, u64* id) {
    *id = stream_of(stream).id;
    return ptxsim::kCudaSuccess;
}
int cudaStreamGetDevice(void*, int* device) {
    *device = 0;
    return ptxsim::kCudaSuccess;
}
int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = kGreatestPriority;
    return ptxsim::kCudaSuccess;
}

int cudaStreamSynchronize(void*) {
    int code = runtime().synchronise();
    return code ? code : runtime().peek_last_error();
}
int cudaStreamQuery(void*) { return ptxsim::kCudaSuccess; }
int cudaStreamWaitEvent(void*, void* event, unsigned) {
    return event ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidResourceHandle);
}
// Attributes of a stream are hints (priority, cache policy, the way of waiting).
int cudaStreamSetAttribute(void*, int, const void*) { return ptxsim::kCudaSuccess; }
int cudaStreamCopyAttributes(void*, void*) { return ptxsim::kCudaSuccess; }
int cudaStreamAttachMemAsync(void*, void*, std::size_t, unsigned) { return ptxsim::kCudaSuccess; }

int cudaLaunchHostFunc(void*, void (*function)(void*), void* data) {
    function(data);
    return ptxsim::kCudaSuccess;
}
int cudaStreamAddCallback(void* stream, void (*callback)(void*, int, void*), void* data, unsigned) {
    callback(stream, runtime().peek_last_error(), data);
    return ptxsim::kCudaSuccess;
}

int cudaEventCreateWithFlags(void** event, unsigned flags) {
    if (!event) return runtime().fail(ptxsim::kCudaInvalidValue);
    *event = new Event{flags, false, {}};
    return ptxsim::kCudaSuccess;
}
int cudaEventCreate(void** event) { return cudaEventCreateWithFlags(event, 0); }
int cudaEventDestroy(void* event) {
    if (!event) return runtime().fail(ptxsim::kCudaInvalidResourceHandle);
    delete static_cast<Event*>(event);
    return ptxsim::kCudaSuccess;
}
int cudaEventRecord(void* event, void*) { return record(event); }
int cudaEventRecordWithFlags(void* event, void*, unsigned) { return record(event); }
int cudaEventSynchronize(void* event) {
    if (int code = runtime().synchronise()) return code;
    return event ? runtime().peek_last_error() : runtime().fail(ptxsim::kCudaInvalidResourceHandle);
}
int cudaEventQuery(void* event) {
    return event ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidResourceHandle);
}
int cudaEventElapsedTime(float* ms, void* from, void* to) {
    auto timed = [](void* event) {
        return event && static_cast<Event*>(event)->recorded && !(static_cast<Event*>(event)->flags & kDisableTiming);
    };
    if (!ms || !timed(from) || !timed(to)) return runtime().fail(ptxsim::kCudaInvalidResourceHandle);
    std::chrono::duration<float, std::milli> passed = static_cast<Event*>(to)->time - static_cast<Event*>(from)->time;
    *ms = passed.count();
    return ptxsim::kCudaSuccess;
}

}  // extern "C"
