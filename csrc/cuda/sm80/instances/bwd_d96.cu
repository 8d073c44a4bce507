// Head dims over 64, up to 96.
#include "../bwd/kernel.cuh"

namespace diffattn::cuda::sm80 {

template void launch_bwd<__half, 96, 96>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
template void launch_bwd<__half, 96, 192>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
template void launch_bwd<__nv_bfloat16, 96, 96>(const BwdParams&, const BwdWorkspace&,
                                                cudaStream_t);
template void launch_bwd<__nv_bfloat16, 96, 192>(const BwdParams&, const BwdWorkspace&,
                                                 cudaStream_t);

}  // namespace diffattn::cuda::sm80
