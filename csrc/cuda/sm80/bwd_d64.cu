// Head dims over 32, up to 64.
#include "bwd.cuh"

namespace diffattn::cuda::sm80 {

template void launch_bwd<64>(const BwdParams&, const BwdWorkspace&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
