// Which calls the forward takes, and which of its kernels serves one.
#include "fwd.h"

#include "../../kernels.h"

namespace diffattn::cuda::sm90 {
namespace {

struct Variant {
  bool (*takes)(const Shape&);
  TileRows rows;
  void (*launch[2])(const FwdParams&, const TensorMaps&, cudaStream_t);  // [bf16]
};

template <int kHeadDim, int kHeadDimV>
constexpr Variant kVariant = {
    [](const Shape& s) {
      const bool twice = s.headdim_v != s.headdim;
      return s.headdim > kHeadDim / 2 && s.headdim <= kHeadDim && twice == (kHeadDimV != kHeadDim);
    },
    kTileRows<kHeadDim, kHeadDimV>,
    {launch_fwd<__half, kHeadDim, kHeadDimV>, launch_fwd<__nv_bfloat16, kHeadDim, kHeadDimV>}};

// Null where no kernel is as wide, or so much wider that sm_80's is faster.
const Variant* find_variant(const Shape& shape) {
  static constexpr Variant kAll[] = {kVariant<64, 64>, kVariant<64, 128>, kVariant<128, 128>,
                                     kVariant<128, 256>};
  for (const Variant& v : kAll)
    if (v.takes(shape)) return &v;
  return nullptr;
}

}  // namespace

bool takes_fwd(const FwdParams& p) {
  return p.softcap == 0 && find_variant(p.shape) && has_tensor_maps(p);
}

void fwd(const FwdParams& params, void* workspace, cudaStream_t stream) {
  const Variant& variant = *find_variant(params.shape);
  TensorMaps maps;
  if (!make_tensor_maps(params, variant.rows, maps))
    return kSm80.fwd.entry.launch(params, workspace, stream);
  variant.launch[params.dtype == DType::bf16](params, maps, stream);
}

}  // namespace diffattn::cuda::sm90
