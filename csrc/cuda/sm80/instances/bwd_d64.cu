// Head dims over 32, up to 64.
#include "../bwd/kernel.cuh"

namespace diffattn::cuda::sm80 {

template void launch_bwd<__half, 64, 64>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
template void launch_bwd<__half, 64, 128>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
template void launch_bwd<__nv_bfloat16, 64, 64>(const BwdParams&, const BwdWorkspace&,
                                                cudaStream_t);
template void launch_bwd<__nv_bfloat16, 64, 128>(const BwdParams&, const BwdWorkspace&,
                                                 cudaStream_t);

}  // namespace diffattn::cuda::sm80
