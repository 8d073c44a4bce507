// What comes before and after the kernel that reads the cache, for all head dims.
#include "combine.cuh"

#include "append.cuh"
#include "decode.h"

namespace diffattn::cuda::decoding {

bool launch_append(const DecodeParams& params, const DecodePlan& plan, bool to_ring,
                   const Launch& launch) {
  return params.dtype == DType::bf16 ? launch_append<__nv_bfloat16>(params, plan, to_ring, launch)
                                     : launch_append<__half>(params, plan, to_ring, launch);
}

void launch_combine(const DecodeParams& params, const DecodePlan& plan, const Launch& launch) {
  const Shape& shape = params.shape;
  const int64_t ctas = shape.batch * shape.nheads * shape.seqlen_q;
  check_size("combine: rows x heads x batch", ctas, kMaxCtas);
  const unsigned threads = unsigned(shape.headdim_v / 2 + 31) / 32 * 32;
  const auto kernel =
      params.dtype == DType::bf16 ? combine_kernel<__nv_bfloat16> : combine_kernel<__half>;
  start("combine: launch", kernel, ctas, threads, 0, launch, params, plan);
}

}  // namespace diffattn::cuda::decoding
