// Head dims up to 32.
#include "../kernel.cuh"

namespace diffattn::cuda::decoding {

template void launch_decode<__half, 32, 32, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                      const Launch&);
template void launch_decode<__half, 32, 32, kManyRows>(const DecodeParams&, const DecodePlan&,
                                                       const Launch&);
template void launch_decode<__half, 32, 64, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                      const Launch&);
template void launch_decode<__half, 32, 64, kManyRows>(const DecodeParams&, const DecodePlan&,
                                                       const Launch&);
template void launch_decode<__nv_bfloat16, 32, 32, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                             const Launch&);
template void launch_decode<__nv_bfloat16, 32, 32, kManyRows>(const DecodeParams&,
                                                              const DecodePlan&, const Launch&);
template void launch_decode<__nv_bfloat16, 32, 64, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                             const Launch&);
template void launch_decode<__nv_bfloat16, 32, 64, kManyRows>(const DecodeParams&,
                                                              const DecodePlan&, const Launch&);

}  // namespace diffattn::cuda::decoding
