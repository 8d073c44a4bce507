// Head dims up to 32.
#include "../fwd/kernel.cuh"

namespace diffattn::cuda::sm80 {

template void launch_fwd<__half, 32, 32>(const FwdParams&, cudaStream_t);
template void launch_fwd<__half, 32, 64>(const FwdParams&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 32, 32>(const FwdParams&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 32, 64>(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
