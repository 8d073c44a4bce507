// Head dims over 96, up to 128.
#include "bwd.cuh"

namespace diffattn::cuda::sm80 {

template void launch_bwd<128>(const BwdParams&, const BwdWorkspace&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
