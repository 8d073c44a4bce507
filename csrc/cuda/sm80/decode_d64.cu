// Head dims over 32, up to 64.
#include "decode.cuh"

namespace diffattn::cuda::sm80 {

template void launch_decode<64>(const DecodeParams&, const DecodePlan&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
