// Head dims up to 32.
#include "decode.cuh"

namespace diffattn::cuda::sm80 {

template void launch_decode<32>(const DecodeParams&, const DecodePlan&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
