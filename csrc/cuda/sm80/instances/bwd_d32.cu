// Head dims up to 32.
#include "../bwd/kernel.cuh"

namespace diffattn::cuda::sm80 {

template void launch_bwd<__half, 32, 32>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
template void launch_bwd<__half, 32, 64>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
template void launch_bwd<__nv_bfloat16, 32, 32>(const BwdParams&, const BwdWorkspace&,
                                                cudaStream_t);
template void launch_bwd<__nv_bfloat16, 32, 64>(const BwdParams&, const BwdWorkspace&,
                                                cudaStream_t);

}  // namespace diffattn::cuda::sm80
