// Head dims up to 32.
#include "fwd.cuh"

namespace diffattn::cuda::sm80 {

template void launch_fwd<32>(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
