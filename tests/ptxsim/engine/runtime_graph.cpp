// Stream captures and graphs of kernels: a capturing stream's launches are kept instead of run, and a graph runs them
// one after the other whenever it is launched. Copies and events of a capturing stream are refused.
#include "runtime_graph.h"

#include "runtime.h"

using ptxsim::Graph;
using ptxsim::Runtime;

namespace {

Runtime& runtime() { return Runtime::instance(); }

enum CaptureStatus : int { kNone = 0, kActive = 1, kInvalidated = 2 };

int status_of(const void* stream) {
    const ptxsim::Capture* capture = runtime().capture();
    if (!capture || capture->stream != stream) return kNone;
    return capture->broken ? kInvalidated : kActive;
}

// The handles 0, 1 and 2 are the default streams: the legacy one waits for all others, and cannot be captured.
bool is_legacy(const void* stream) { return reinterpret_cast<ptxsim::u64>(stream) <= 1; }

}  // namespace

extern "C" {

int cudaStreamBeginCapture(void* stream, int) {
    if (is_legacy(stream)) return runtime().fail(ptxsim::kCudaStreamCaptureUnsupported);
    if (runtime().capture()) return runtime().refuse("cudaStreamBeginCapture while another stream captures");
    runtime().begin_capture(stream);
    return ptxsim::kCudaSuccess;
}
int cudaStreamEndCapture(void* stream, void** graph) {
    *graph = nullptr;
    if (status_of(stream) == kNone) return runtime().fail(ptxsim::kCudaStreamCaptureUnmatched);
    ptxsim::Capture capture = runtime().end_capture();
    if (capture.broken) return runtime().fail(ptxsim::kCudaStreamCaptureInvalidated);
    *graph = new Graph(std::move(capture.graph));
    return ptxsim::kCudaSuccess;
}
int cudaStreamIsCapturing(void* stream, int* status) {
    *status = status_of(stream);
    return ptxsim::kCudaSuccess;
}
int cudaStreamGetCaptureInfo(void* stream, int* status, ptxsim::u64*, void**, const void**, const void**,
                             std::size_t*) {
    *status = status_of(stream);
    return ptxsim::kCudaSuccess;
}
int cudaThreadExchangeStreamCaptureMode(int* mode) {
    static thread_local int current = 0;
    std::swap(current, *mode);
    return ptxsim::kCudaSuccess;
}

int cudaGraphInstantiate(void** executable, void* graph, unsigned long long) {
    *executable = new Graph(*static_cast<Graph*>(graph));
    return ptxsim::kCudaSuccess;
}
int cudaGraphGetNodes(void* graph, void** nodes, std::size_t* count) {
    if (nodes) return runtime().refuse("cudaGraphGetNodes for more than their number");
    *count = static_cast<Graph*>(graph)->size();
    return ptxsim::kCudaSuccess;
}
int cudaGraphLaunch(void* executable, void* stream) {
    return runtime().guarded([&] { runtime().run(*static_cast<Graph*>(executable), stream); });
}
// No function here calls another of the runtime: a process that has loaded a real one would call that.
int cudaGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return ptxsim::kCudaSuccess;
}
int cudaGraphExecDestroy(void* executable) {
    delete static_cast<Graph*>(executable);
    return ptxsim::kCudaSuccess;
}

}  // extern "C"
