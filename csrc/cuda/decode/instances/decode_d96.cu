// Head dims over 64, up to 96.
#include "../kernel.cuh"

namespace diffattn::cuda::decoding {

template void launch_decode<__half, 96, 96, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                      const Launch&);
template void launch_decode<__half, 96, 96, kManyRows>(const DecodeParams&, const DecodePlan&,
                                                       const Launch&);
template void launch_decode<__half, 96, 192, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                       const Launch&);
template void launch_decode<__half, 96, 192, kManyRows>(const DecodeParams&, const DecodePlan&,
                                                        const Launch&);
template void launch_decode<__nv_bfloat16, 96, 96, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                             const Launch&);
template void launch_decode<__nv_bfloat16, 96, 96, kManyRows>(const DecodeParams&,
                                                              const DecodePlan&, const Launch&);
template void launch_decode<__nv_bfloat16, 96, 192, kFewRows>(const DecodeParams&,
                                                              const DecodePlan&, const Launch&);
template void launch_decode<__nv_bfloat16, 96, 192, kManyRows>(const DecodeParams&,
                                                               const DecodePlan&, const Launch&);

}  // namespace diffattn::cuda::decoding
