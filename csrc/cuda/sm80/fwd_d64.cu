// Head dims over 32, up to 64.
#include "fwd.cuh"

namespace diffattn::cuda::sm80 {

template void launch_fwd<64>(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
