// Head dims up to 32.
#include "bwd.cuh"

namespace diffattn::cuda::sm80 {

template void launch_bwd<32>(const BwdParams&, const BwdWorkspace&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
