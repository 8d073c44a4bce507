// Host code that asks the CUDA runtime for everything but a launch: the device, memory, copies, streams, occupancy.
// Structures are those of the toolkit's own headers, so a stand-in whose layout differs is seen.
#include <cuda_occupancy.h>
#include <cuda_runtime.h>

__device__ int counter[4] = {1, 2, 3, 4};

__global__ void __launch_bounds__(256) add_counter(int* x, int n) {
    __shared__ int room[64];
    if (threadIdx.x < 64) room[threadIdx.x] = 0;
    __syncthreads();
    if (threadIdx.x < n) x[threadIdx.x] += counter[threadIdx.x % 4] + room[threadIdx.x % 64];
}

struct Attribute {
    cudaDeviceAttr id;
    long property;
};

// Each property with the attribute that says the same, as pairs; returns their number, or minus an error.
extern "C" int properties(long* property, long* attribute, char* name) {
    struct {
        cudaDeviceProp p;
        unsigned long canary[4];
    } room;
    for (unsigned long& word : room.canary) word = 0x5a5a5a5a5a5a5a5aul;
    if (cudaError_t error = cudaGetDeviceProperties(&room.p, 0)) return -error;
    for (unsigned long word : room.canary)
        if (word != 0x5a5a5a5a5a5a5a5aul) return -1000;
    const cudaDeviceProp& p = room.p;
    const Attribute pairs[] = {{cudaDevAttrComputeCapabilityMajor, p.major},
                               {cudaDevAttrComputeCapabilityMinor, p.minor},
                               {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
                               {cudaDevAttrMaxSharedMemoryPerBlock, (long)p.sharedMemPerBlock},
                               {cudaDevAttrMaxSharedMemoryPerBlockOptin, (long)p.sharedMemPerBlockOptin},
                               {cudaDevAttrMaxSharedMemoryPerMultiprocessor, (long)p.sharedMemPerMultiprocessor},
                               {cudaDevAttrReservedSharedMemoryPerBlock, (long)p.reservedSharedMemPerBlock},
                               {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
                               {cudaDevAttrMaxBlocksPerMultiprocessor, p.maxBlocksPerMultiProcessor},
                               {cudaDevAttrMaxRegistersPerBlock, p.regsPerBlock},
                               {cudaDevAttrMaxRegistersPerMultiprocessor, p.regsPerMultiprocessor},
                               {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
                               {cudaDevAttrMaxBlockDimZ, p.maxThreadsDim[2]},
                               {cudaDevAttrMaxGridDimX, p.maxGridSize[0]},
                               {cudaDevAttrMaxGridDimY, p.maxGridSize[1]},
                               {cudaDevAttrWarpSize, p.warpSize},
                               {cudaDevAttrTotalConstantMemory, (long)p.totalConstMem},
                               {cudaDevAttrL2CacheSize, p.l2CacheSize},
                               {cudaDevAttrGlobalMemoryBusWidth, p.memoryBusWidth},
                               {cudaDevAttrConcurrentKernels, p.concurrentKernels},
                               {cudaDevAttrAsyncEngineCount, p.asyncEngineCount},
                               {cudaDevAttrUnifiedAddressing, p.unifiedAddressing},
                               {cudaDevAttrManagedMemory, p.managedMemory},
                               {cudaDevAttrConcurrentManagedAccess, p.concurrentManagedAccess},
                               {cudaDevAttrCooperativeLaunch, p.cooperativeLaunch},
                               {cudaDevAttrMemoryPoolsSupported, p.memoryPoolsSupported},
                               {cudaDevAttrHostRegisterSupported, p.hostRegisterSupported},
                               {cudaDevAttrClusterLaunch, p.clusterLaunch},
                               {cudaDevAttrMaxPersistingL2CacheSize, p.persistingL2CacheMaxSize},
                               {cudaDevAttrEccEnabled, p.ECCEnabled},
                               {cudaDevAttrMaxTexture2DWidth, p.maxTexture2D[0]},
                               {cudaDevAttrHostNumaId, p.hostNumaId}};
    int count = 0;
    for (const Attribute& a : pairs) {
        int value = -77;
        if (cudaError_t error = cudaDeviceGetAttribute(&value, a.id, 0)) return -error;
        property[count] = a.property;
        attribute[count++] = value;
    }
    for (int i = 0; i < 256; ++i) name[i] = p.name[i];
    return count;
}

extern "C" int attribute(int id, int device, int* value) { return cudaDeviceGetAttribute(value, (cudaDeviceAttr)id, device); }

extern "C" int add(int* x, int n) {
    cudaGetLastError();  // forgets the errors of earlier calls
    add_counter<<<1, 256>>>(x, n);
    return cudaGetLastError();
}

// The occupancy of add_counter by the runtime, and by the header that documents the arithmetic.
extern "C" int occupancy(int threads, long dynamic, int* runtime, int* header) {
    cudaDeviceProp p;
    cudaFuncAttributes attributes;
    if (cudaError_t error = cudaGetDeviceProperties(&p, 0)) return error;
    if (cudaError_t error = cudaFuncGetAttributes(&attributes, add_counter)) return error;
    if (cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(runtime, add_counter, threads, dynamic)) return error;
    cudaOccResult result;
    cudaOccDeviceProp device(p);
    cudaOccFuncAttributes function(attributes);
    if (attributes.maxDynamicSharedSizeBytes > (int)p.sharedMemPerBlock) {
        function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        function.maxDynamicSharedSizeBytes = attributes.maxDynamicSharedSizeBytes;
    }
    cudaOccDeviceState state;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads, dynamic)) return -1;
    *header = result.activeBlocksPerMultiprocessor;
    return 0;
}

extern "C" int available_shared(int blocks, int threads, long* bytes) {
    size_t found = 0;
    int code = cudaOccupancyAvailableDynamicSMemPerBlock(&found, add_counter, blocks, threads);
    *bytes = found;
    return code;
}

extern "C" int opt_in(int bytes) { return cudaFuncSetAttribute(add_counter, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); }

extern "C" int function_attributes(long* out) {
    cudaFuncAttributes a;
    if (cudaError_t error = cudaFuncGetAttributes(&a, add_counter)) return error;
    long values[] = {(long)a.sharedSizeBytes, (long)a.constSizeBytes, (long)a.localSizeBytes, a.maxThreadsPerBlock, a.ptxVersion,
                     a.binaryVersion, a.maxDynamicSharedSizeBytes, a.clusterDimMustBeSet, a.numRegs};
    for (long value : values) *out++ = value;
    return 0;
}

extern "C" int copy_2d(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height) {
    return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, cudaMemcpyDefault);
}
extern "C" int copy_1d(void* to, const void* from, size_t bytes, int kind) {
    return cudaMemcpyAsync(to, from, bytes, (cudaMemcpyKind)kind, cudaStreamPerThread);
}
extern "C" int fill_2d(void* to, size_t pitch, int value, size_t width, size_t height) {
    return cudaMemset2D(to, pitch, value, width, height);
}

// Writes the module variable, and reads it back from its second element.
extern "C" int symbols(const int* from, int* to, size_t offset) {
    void* address = nullptr;
    size_t size = 0;
    if (cudaError_t error = cudaGetSymbolSize(&size, counter)) return error;
    if (size != 16) return -1;
    if (cudaError_t error = cudaGetSymbolAddress(&address, counter)) return error;
    if (cudaError_t error = cudaMemcpyToSymbol(counter, from, 16)) return error;
    return cudaMemcpyFromSymbol(to, counter, 8, offset);
}

__managed__ int both[4] = {1, 2, 3, 4};
__global__ void bump() { both[threadIdx.x] += 10; }

// The host writes a managed variable, a kernel reads and writes it, the host reads it.
extern "C" int managed_variable(int* out) {
    cudaGetLastError();  // forgets the errors of earlier calls
    both[1] = 50;
    bump<<<1, 4>>>();
    for (int i = 0; i < 4; ++i) out[i] = both[i];
    return cudaGetLastError();
}

// One piece of memory of every kind: 0 device, 1 asynchronous, 2 pinned, 3 managed, 4 pitched.
extern "C" int allocate(int kind, size_t bytes, void** out) {
    size_t pitch;
    switch (kind) {
        case 0: return cudaMalloc(out, bytes);
        case 1: return cudaMallocAsync(out, bytes, 0);
        case 2: return cudaMallocHost(out, bytes);
        case 3: return cudaMallocManaged(out, bytes);
        default: return cudaMallocPitch(out, &pitch, bytes, 3);
    }
}
extern "C" int release(int kind, void* p) {
    return kind == 2 ? cudaFreeHost(p) : kind == 1 ? cudaFreeAsync(p, 0) : cudaFree(p);
}
extern "C" int type_of(const void* p) {
    cudaPointerAttributes a;
    a.reserved[7] = 9;
    if (cudaPointerGetAttributes(&a, p)) return -1;
    return a.reserved[7] ? -2 : a.type;
}
extern "C" int register_host(void* p, size_t bytes) { return cudaHostRegister(p, bytes, cudaHostRegisterDefault); }
extern "C" int unregister_host(void* p) { return cudaHostUnregister(p); }
extern "C" long free_memory() {
    size_t free = 0, total = 0;
    return cudaMemGetInfo(&free, &total) ? -1 : (long)(total - free);
}

static void CUDART_CB note(void* data) { *(int*)data += 1; }

extern "C" int streams(float* ms, int* calls) {
    cudaStream_t s;
    cudaEvent_t begin, end, untimed;
    int priority = 9, least, greatest;
    if (cudaError_t error = cudaDeviceGetStreamPriorityRange(&least, &greatest)) return error;
    if (cudaError_t error = cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, greatest)) return error;
    if (cudaStreamGetPriority(s, &priority) || priority != greatest || !s) return -1;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming);
    if (cudaEventElapsedTime(ms, begin, end) != cudaErrorInvalidResourceHandle) return -2;  // not recorded
    cudaEventRecord(begin, s);
    cudaEventRecord(untimed, s);
    cudaLaunchHostFunc(s, note, calls);
    cudaEventRecord(end, s);
    if (cudaEventElapsedTime(ms, begin, untimed) != cudaErrorInvalidResourceHandle) return -3;
    if (cudaStreamWaitEvent(s, end, 0) || cudaEventQuery(end) || cudaStreamSynchronize(s) != cudaErrorInvalidResourceHandle) return -4;
    cudaGetLastError();
    int code = cudaEventElapsedTime(ms, begin, end);
    cudaEventDestroy(begin), cudaEventDestroy(end), cudaEventDestroy(untimed);
    return code ? code : cudaStreamDestroy(s);
}

// ---- what is refused ----

extern "C" int begin_capture() { return cudaStreamBeginCapture(0, cudaStreamCaptureModeGlobal); }
extern "C" int make_graph() {
    cudaGraph_t graph;
    return cudaGraphCreate(&graph, 0);
}
extern "C" int entry_point() {
    void* f = (void*)1;
    cudaDriverEntryPointQueryResult status;
    int code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeIm2col", &f, 12000, cudaEnableDefault, &status);
    return f || status == cudaDriverEntryPointSuccess ? -1 : code;
}
extern "C" int launch_cluster(int* x, int n, unsigned blocks, int id) {
    cudaLaunchAttribute attribute;
    attribute.id = (cudaLaunchAttributeID)id;
    attribute.val.clusterDim.x = blocks;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1);
    config.blockDim = dim3(256);
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, add_counter, x, n);
}
extern "C" int cluster_attribute() { return cudaFuncSetAttribute(add_counter, cudaFuncAttributeRequiredClusterWidth, 1); }
