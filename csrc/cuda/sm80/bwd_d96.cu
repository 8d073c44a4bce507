// Head dims over 64, up to 96.
#include "bwd.cuh"

namespace diffattn::cuda::sm80 {

template void launch_bwd<96>(const BwdParams&, const BwdWorkspace&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
