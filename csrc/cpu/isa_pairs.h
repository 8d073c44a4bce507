// Defines the table of an instruction set that multiplies pairs of bf16; all else is as in another table.
#pragma once
#include "backward.h"
#include "decode.h"
#include "kernels.h"

namespace diffattn::cpu {
namespace {

template <class P, const Kernels& kOthers>
void fwd_pairs(const FwdParams& p, const Parallel& parallel) {
  if (p.dtype != DType::bf16) return kOthers.fwd(p, parallel);
  forward<P>(p, Cache{}, parallel);
}

template <class P, const Kernels& kOthers>
void bwd_pairs(const BwdParams& p, const Parallel& parallel) {
  if (p.dtype != DType::bf16) return kOthers.bwd(p, parallel);
  backward<P>(p, parallel);
}

template <class P, const Kernels& kOthers>
void decode_pairs(const DecodeParams& p, const Parallel& parallel) {
  if (p.dtype != DType::bf16) return kOthers.decode(p, parallel);
  decode<P>(p, parallel);
}

template <class P, const Kernels& kOthers>
constexpr Kernels pairs_table(const char* isa) {
  return {isa, fwd_pairs<P, kOthers>, bwd_pairs<P, kOthers>, decode_pairs<P, kOthers>};
}

}  // namespace
}  // namespace diffattn::cpu
