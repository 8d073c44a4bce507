// Head dims over 96, up to 128.
#include "../kernel.cuh"

namespace diffattn::cuda::decoding {

template void launch_decode<__half, 128, 128, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                        const Launch&);
template void launch_decode<__half, 128, 128, kManyRows>(const DecodeParams&, const DecodePlan&,
                                                         const Launch&);
template void launch_decode<__half, 128, 256, kFewRows>(const DecodeParams&, const DecodePlan&,
                                                        const Launch&);
template void launch_decode<__half, 128, 256, kManyRows>(const DecodeParams&, const DecodePlan&,
                                                         const Launch&);
template void launch_decode<__nv_bfloat16, 128, 128, kFewRows>(const DecodeParams&,
                                                               const DecodePlan&, const Launch&);
template void launch_decode<__nv_bfloat16, 128, 128, kManyRows>(const DecodeParams&,
                                                                const DecodePlan&, const Launch&);
template void launch_decode<__nv_bfloat16, 128, 256, kFewRows>(const DecodeParams&,
                                                               const DecodePlan&, const Launch&);
template void launch_decode<__nv_bfloat16, 128, 256, kManyRows>(const DecodeParams&,
                                                                const DecodePlan&, const Launch&);

}  // namespace diffattn::cuda::decoding
