// What comes before and after the kernel that reads the cache, for all head dims.
#include "combine.cuh"

#include "append.cuh"
#include "decode.h"

namespace diffattn::cuda::decoding {

void launch_append(const DecodeParams& params, const DecodePlan& plan, bool to_ring,
                   cudaStream_t stream) {
  params.dtype == DType::bf16 ? launch_append<__nv_bfloat16>(params, plan, to_ring, stream)
                              : launch_append<__half>(params, plan, to_ring, stream);
}

void launch_combine(const DecodeParams& params, const DecodePlan& plan, cudaStream_t stream) {
  const Shape& shape = params.shape;
  const int64_t ctas = shape.batch * shape.nheads * shape.seqlen_q;
  check_size("combine: rows x heads x batch", ctas, kMaxCtas);
  const unsigned threads = unsigned(shape.headdim_v / 2 + 31) / 32 * 32;
  const auto launch = [&](auto element) {
    combine_kernel<decltype(element)><<<unsigned(ctas), threads, 0, stream>>>(params, plan);
  };
  params.dtype == DType::bf16 ? launch(__nv_bfloat16()) : launch(__half());
  check(cudaGetLastError(), "combine: launch");
}

}  // namespace diffattn::cuda::decoding
