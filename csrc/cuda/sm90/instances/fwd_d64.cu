// Head dims over 32, up to 64.
#include "../fwd/kernel.cuh"

namespace diffattn::cuda::sm90 {

template void launch_fwd<__half, 64, 64>(const FwdParams&, const TensorMaps&, cudaStream_t);
template void launch_fwd<__half, 64, 128>(const FwdParams&, const TensorMaps&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 64, 64>(const FwdParams&, const TensorMaps&, cudaStream_t);
template void launch_fwd<__nv_bfloat16, 64, 128>(const FwdParams&, const TensorMaps&, cudaStream_t);

}  // namespace diffattn::cuda::sm90
