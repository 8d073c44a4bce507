// From the waist to the kernels of the device at hand.
#include "sm80/fwd.h"

#include "device.h"

namespace diffattn::cuda {

void fwd(const FwdParams& params, void* stream) {
  check_device();
  check_shape(params.dtype, params.shape);
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t d = params.shape.headdim;
  if (d <= 32) return sm80::launch_fwd<32>(params, s);
  if (d <= 64) return sm80::launch_fwd<64>(params, s);
  if (d <= 96) return sm80::launch_fwd<96>(params, s);
  sm80::launch_fwd<128>(params, s);
}

}  // namespace diffattn::cuda
