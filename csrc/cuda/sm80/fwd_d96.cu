// Head dims over 64, up to 96.
#include "fwd.cuh"

namespace diffattn::cuda::sm80 {

template void launch_fwd<96>(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
