// Head dims over 96, up to 128.
#include "../bwd/kernel.cuh"

namespace diffattn::cuda::sm80 {

template void launch_bwd<__half, 128, 128>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
template void launch_bwd<__half, 128, 256>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
template void launch_bwd<__nv_bfloat16, 128, 128>(const BwdParams&, const BwdWorkspace&,
                                                  cudaStream_t);
template void launch_bwd<__nv_bfloat16, 128, 256>(const BwdParams&, const BwdWorkspace&,
                                                  cudaStream_t);

}  // namespace diffattn::cuda::sm80
