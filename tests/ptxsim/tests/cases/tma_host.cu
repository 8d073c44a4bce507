// Host code of Hopper kernels: a tensor map through the driver's entry point, clusters and programmatic launches by
// attributes.
#include <cuda.h>
#include <cuda_runtime.h>

#include "hopper.cuh"

extern "C" __global__ void copy_tile(const __grid_constant__ CUtensorMap map, int* out) {
    __shared__ alignas(128) int tile[8 * 32];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        init_barrier<1>(&full);
        fence_init();
        expect(&full, sizeof tile);
        load_box(tile, reinterpret_cast<const TensorMap*>(&map), 0, 8 * blockIdx.x, &full);
    }
    __syncthreads();
    wait(&full, 0);
    for (int i = threadIdx.x; i < 8 * 32; i += blockDim.x) out[blockIdx.x * 8 * 32 + i] = tile[i];
}

__constant__ CUtensorMap constant_map;
__device__ CUtensorMap global_map;

template <bool kConstant>
__device__ void copy_tile_of(int* out) {
    __shared__ alignas(128) int tile[8 * 32];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) {
        init_barrier<1>(&full);
        fence_init();
        expect(&full, sizeof tile);
        load_box(tile, reinterpret_cast<const TensorMap*>(kConstant ? &constant_map : &global_map), 0, 0, &full);
    }
    __syncthreads();
    wait(&full, 0);
    for (int i = threadIdx.x; i < 8 * 32; i += blockDim.x) out[i] = tile[i];
}
__global__ void copy_tile_of_constant(int* out) { copy_tile_of<true>(out); }
__global__ void copy_tile_of_global(int* out) { copy_tile_of<false>(out); }

__global__ void rank_in_cluster(int* out) { out[blockIdx.x] = cluster_rank(); }

__global__ void first(int* parts) { parts[threadIdx.x] = threadIdx.x; }
__global__ void second(const int* parts, int* out, int waits) {
    if (waits) asm volatile("griddepcontrol.wait;" ::: "memory");
    out[threadIdx.x] = parts[threadIdx.x] + 1;
}

static CUresult encode(CUtensorMap* map, int* x, int rows) {
    using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                                const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    cudaError_t code =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
    if (code != cudaSuccess || status != cudaDriverEntryPointSuccess) return CUDA_ERROR_NOT_FOUND;
    cuuint64_t dims[] = {32, (cuuint64_t)rows}, strides[] = {128};
    cuuint32_t box[] = {32, 8}, steps[] = {1, 1};
    return reinterpret_cast<Encode>(found)(map, CU_TENSOR_MAP_DATA_TYPE_INT32, 2, x, dims, strides, box, steps,
                                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                                           CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

extern "C" int copy_rows(int* x, int* out, int rows) {
    CUtensorMap map;
    if (CUresult code = encode(&map, x, rows)) return code;
    copy_tile<<<(rows + 7) / 8, 32>>>(map, out);
    return cudaGetLastError();
}

extern "C" int copy_by_place(int* x, int* out, int constant) {
    CUtensorMap map;
    if (CUresult code = encode(&map, x, 8)) return code;
    if (constant) cudaMemcpyToSymbol(constant_map, &map, sizeof map);
    else cudaMemcpyToSymbol(global_map, &map, sizeof map);
    if (constant) copy_tile_of_constant<<<1, 32>>>(out);
    else copy_tile_of_global<<<1, 32>>>(out);
    return cudaGetLastError();
}

extern "C" int launch_cluster(int* out, int blocks, unsigned size, int large) {
    if (large) cudaFuncSetAttribute(rank_in_cluster, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {size, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(32);
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, rank_in_cluster, out);
}

static int launch_both(int* parts, int* out, int programmatic, int waits, int synchronises, cudaStream_t stream) {
    first<<<1, 32, 0, stream>>>(parts);
    if (synchronises)
        if (int code = cudaDeviceSynchronize()) return code;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = programmatic;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1);
    config.blockDim = dim3(32);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, second, (const int*)parts, out, waits);
}

extern "C" int launch_dependent(int* parts, int* out, int programmatic, int waits, int synchronises) {
    return launch_both(parts, out, programmatic, waits, synchronises, 0);
}

// Captures both kernels, and launches the graph so many times.
extern "C" int capture_dependent(int* parts, int* out, int waits, int synchronises, int launches, size_t* nodes) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cudaStreamCaptureStatus status;
    cudaStreamCreate(&stream);
    if (int code = cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal)) return code;
    int inside = launch_both(parts, out, 1, waits, synchronises, stream);
    if (cudaStreamIsCapturing(stream, &status) || status == cudaStreamCaptureStatusNone) return -1;
    if (int code = cudaStreamEndCapture(stream, &graph)) return code;
    if (inside || cudaStreamIsCapturing(stream, &status) || status != cudaStreamCaptureStatusNone) return -2;
    cudaGraphGetNodes(graph, nullptr, nodes);
    if (int code = cudaGraphInstantiate(&executable, graph, 0)) return code;
    cudaGraphDestroy(graph);
    for (int i = 0; i < launches; ++i)
        if (int code = cudaGraphLaunch(executable, stream)) return code;
    cudaGraphExecDestroy(executable);
    return cudaStreamSynchronize(stream);
}

extern "C" int capture_copy(int* parts, int* out) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaStreamCreate(&stream);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    int code = cudaMemcpyAsync(out, parts, 4, cudaMemcpyDefault, stream);
    cudaStreamEndCapture(stream, &graph);
    return code;
}

extern "C" int most_clusters(unsigned size) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {size, 1, 1};
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(1024);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0, largest = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, rank_in_cluster, &config)) return -1;
    if (cudaOccupancyMaxPotentialClusterSize(&largest, rank_in_cluster, &config) || largest < 8) return -2;
    return clusters;
}
