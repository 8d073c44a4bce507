// The forward kernel: O = O1 - lambda·O2, one map after the other.
//
// One thread of the producer warpgroup copies tiles of Q, K and V by TMA; two consumer warpgroups, of 64 rows each,
// multiply them. Both maps go through the same loop: the noise's O2 waits in shared memory until the signal's O1 is
// there, in the slots of the thread that will subtract it.
#pragma once
#include "../../common/barrier.cuh"
#include "../../common/error.h"
#include "consumer.cuh"
#include "epilogue.cuh"
#include "producer.cuh"

#include <cutlass/arch/reg_reconfig.h>

namespace diffattn::cuda::sm90 {

template <class T>
__device__ void set_up(const FwdParams& params, char* smem) {
  static_assert(sizeof(Place<T>) <= T::kPlaceBytes);
  if (threadIdx.x == 0) {
    place_in<T>(smem) = Place<T>(params);
    Barriers& barriers = barriers_in<T>(smem);
    constexpr int kWarps = T::kConsumerThreads / 32;
    for (int tile = 0; tile < T::kQTiles; ++tile) init_barrier(barriers.q_full[tile], 1);
    if (T::kQTiles == 1) init_barrier(barriers.q_empty, kWarps);
    for (int stage = 0; stage < T::kStages; ++stage) {
      init_barrier(barriers.k_full[stage], 1);
      init_barrier(barriers.v_full[stage], 1);
      init_barrier(barriers.k_empty[stage], kWarps);
      init_barrier(barriers.v_empty[stage], kWarps);
    }
    publish_barriers();
  }
  __syncthreads();  // all threads know the place and the barriers
}

template <class T>
__device__ void consume(const FwdParams& params, char* smem) {
  const SharedOrigins<T> origins(smem);
  Consumer<T> consumer(params, smem);
  for (int map = kNoise;; map = kSignal) {
    OFragment<T> o = {};
    Softmax<typename T::Element> softmax(params.softmax_scale);
    consumer.run(map, softmax, origins, o);
    const Epilogue<T> epilogue(params, smem);
    epilogue.normalise(map, softmax, origins, o);
    if (params.maps[map].o.data)
      epilogue.store_own(map, o);
    else if (map == kNoise)
      epilogue.keep(o);
    else
      epilogue.run(o);
    if (map == kSignal) return;
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    fwd_kernel(const __grid_constant__ FwdParams params, const __grid_constant__ TensorMaps maps) {
  extern __shared__ __align__(1024) char smem[];
  set_up<T>(params, smem);
  if (!place_in<T>(smem).has_rows()) return;
  if (warpgroup<T>() == 0) {
    cutlass::arch::warpgroup_reg_dealloc<T::kProducerRegisters>();
    if (threadIdx.x == 0) Producer<T>(params, maps, smem).run();
  } else {
    cutlass::arch::warpgroup_reg_alloc<T::kConsumerRegisters>();
    consume<T>(params, smem);
  }
}

template <class Element, int kHeadDim, int kHeadDimV>
void launch_fwd(const FwdParams& params, const TensorMaps& maps, cudaStream_t stream) {
  using T = FwdTraits<Element, kHeadDim, kHeadDimV>;
  const int64_t row_blocks = (params.shape.seqlen_q + T::kRows - 1) / T::kRows;
  const int64_t ctas = row_blocks * params.shape.nheads * params.shape.batch;
  check_size("forward: blocks of rows x heads x batch", ctas, kMaxCtas);
  const auto kernel = fwd_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSmemBytes),
        "forward: shared memory");
  kernel<<<unsigned(ctas), T::kThreads, T::kSmemBytes, stream>>>(params, maps);
  check(cudaGetLastError(), "forward: launch");
}

}  // namespace diffattn::cuda::sm90
