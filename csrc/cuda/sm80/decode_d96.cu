// Head dims over 64, up to 96.
#include "decode.cuh"

namespace diffattn::cuda::sm80 {

template void launch_decode<96>(const DecodeParams&, const DecodePlan&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
