// Head dims over 96, up to 128.
#include "fwd.cuh"

namespace diffattn::cuda::sm80 {

template void launch_fwd<128>(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
