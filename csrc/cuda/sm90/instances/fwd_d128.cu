// Head dims over 64, up to 128.
#include "../fwd/kernel.cuh"

namespace diffattn::cuda::sm90 {

template void launch_fwd<__half, 128, 128>(const FwdParams&, const TensorMaps&, cudaStream_t);
template void launch_fwd<__half, 128, 256>(const FwdParams&, const TensorMaps&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 128, 128>(const FwdParams&, const TensorMaps&,
                                                  cudaStream_t);
template void launch_fwd<__nv_bfloat16, 128, 256>(const FwdParams&, const TensorMaps&,
                                                  cudaStream_t);

}  // namespace diffattn::cuda::sm90
