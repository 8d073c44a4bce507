// Head dims over 32, up to 64.
#include "../kernel.cuh"

namespace diffattn::cuda::decoding {

template void launch_decode<__half, 64, 64, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                      const Launch&);
template void launch_decode<__half, 64, 64, kManyRows>(const DecodeParams&, const DecodePlan&,
                                                       const Launch&);
template void launch_decode<__half, 64, 128, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                       const Launch&);
template void launch_decode<__half, 64, 128, kManyRows>(const DecodeParams&, const DecodePlan&,
                                                        const Launch&);
template void launch_decode<__nv_bfloat16, 64, 64, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                             const Launch&);
template void launch_decode<__nv_bfloat16, 64, 64, kManyRows>(const DecodeParams&,
                                                              const DecodePlan&, const Launch&);
template void launch_decode<__nv_bfloat16, 64, 128, kFewRows>(const DecodeParams&,
                                                              const DecodePlan&, const Launch&);
template void launch_decode<__nv_bfloat16, 64, 128, kManyRows>(const DecodeParams&,
                                                               const DecodePlan&, const Launch&);

}  // namespace diffattn::cuda::decoding
