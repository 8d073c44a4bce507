// Head dims over 64, up to 96.
#include "../fwd/kernel.cuh"

namespace diffattn::cuda::sm80 {

template void launch_fwd<__half, 96, 96>(const FwdParams&, cudaStream_t);
template void launch_fwd<__half, 96, 192>(const FwdParams&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 96, 96>(const FwdParams&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 96, 192>(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
