// Head dims over 96, up to 128.
#include "decode.cuh"

namespace diffattn::cuda::sm80 {

template void launch_decode<128>(const DecodeParams&, const DecodePlan&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
