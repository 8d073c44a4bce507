// The head dims that kernels are compiled for. A head dim between two of them runs as the larger.
#pragma once
#include <cstdint>

namespace diffattn::cuda {

template <class Variant>
const Variant& for_headdim(int64_t d, const Variant& to_32, const Variant& to_64,
                           const Variant& to_96, const Variant& to_128) {
  return d <= 32 ? to_32 : d <= 64 ? to_64 : d <= 96 ? to_96 : to_128;
}

}  // namespace diffattn::cuda
