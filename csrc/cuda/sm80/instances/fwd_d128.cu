// Head dims over 96, up to 128.
#include "../fwd/kernel.cuh"

namespace diffattn::cuda::sm80 {

template void launch_fwd<__half, 128, 128>(const FwdParams&, cudaStream_t);
template void launch_fwd<__half, 128, 256>(const FwdParams&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 128, 128>(const FwdParams&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 128, 256>(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
