// Defines the table of one instruction set; included once by each kernels_<isa>.cpp.
#pragma once
#include "backward.h"
#include "decode.h"
#include "kernels.h"

namespace diffattn::cpu {
namespace {

void fwd_any(const FwdParams& p, const Parallel& parallel) {
  if (p.dtype == DType::f64) return forward<double>(p, Cache{}, parallel);
  forward<float>(p, Cache{}, parallel);
}

void bwd_any(const BwdParams& p, const Parallel& parallel) {
  if (p.dtype == DType::f64) return backward<double>(p, parallel);
  backward<float>(p, parallel);
}

void decode_any(const DecodeParams& p, const Parallel& parallel) {
  if (p.dtype == DType::f64) return decode<double>(p, parallel);
  decode<float>(p, parallel);
}

}  // namespace
}  // namespace diffattn::cpu
