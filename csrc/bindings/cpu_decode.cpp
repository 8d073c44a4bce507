// Decoding on CPU tensors. Lengths, indices and pages are checked too: their values can be read.
#include <torch/csrc/stable/library.h>

#include "cache_values.h"
#include "cpu_parallel.h"

namespace diffattn::bindings {
namespace {

constexpr PageSizes kPageSizes{[](int64_t page) { return page >= 1; }, "every size from 1 on"};

// To the output, or to each map's own.
OutAndLse decode_to(const Operand& output, const DecodeArguments& given) {
  KvCache c(given, kPageSizes);
  const CacheValues values(c);
  c.q = with_rows(c.q);
  for (OptionalTensor* t : {&c.k, &c.v, &c.norm_weight})
    if (*t) *t = with_rows(**t);
  Tensor out = c.new_of(output), lse = c.new_of(kLse);
  DecodeParams p = params_of(c);
  set_views(p, false, {{output, out}, {kLse, lse}});
  p.groups.lse = map_stride(kLse, lse, false);
  p.groups.o = map_stride(output, out, false);
  values.use_in(p.cache);
  if (c.shape.batch > 0) cpu::decode(p, parallel());
  return {out, lse};
}

OutAndLse decode(const DecodeArguments& given) { return decode_to(kOut, given); }
OutAndLse components(const DecodeArguments& given) { return decode_to(kComponents, given); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DIFFATTN_OPS, CPU, m) {
  m.impl("decode", TORCH_BOX(&decode_from_schema<decode>));
  m.impl("decode_components", TORCH_BOX(&decode_components_from_schema<components>));
}

}  // namespace diffattn::bindings
