// Defines the table of one instruction set; included once by each kernels_<isa>.cpp.
#pragma once
#include "backward.h"
#include "decode.h"
#include "kernels.h"

namespace diffattn::cpu {
namespace {

void fwd_any(const FwdParams& p, const Parallel& parallel) {
  if (p.dtype == DType::f64) return forward<Numbers<double>>(p, Cache{}, parallel);
  forward<Numbers<float>>(p, Cache{}, parallel);
}

void bwd_any(const BwdParams& p, const Parallel& parallel) {
  if (p.dtype == DType::f64) return backward<Numbers<double>>(p, parallel);
  backward<Numbers<float>>(p, parallel);
}

void decode_any(const DecodeParams& p, const Parallel& parallel) {
  if (p.dtype == DType::f64) return decode<Numbers<double>>(p, parallel);
  decode<Numbers<float>>(p, parallel);
}

}  // namespace
}  // namespace diffattn::cpu
