// RMSNorm of one row (arXiv 1910.07467): x̂ = O·rstd, rstd = rsqrt(mean(O²) + eps).
#pragma once
#include <cmath>
#include <cstdint>

#include "../../diffattn.h"

namespace diffattn::cpu {
namespace {

template <class C>
C inverse_rms(const C* row, int64_t n, C eps) {
  C squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += row[i] * row[i];
  return 1 / std::sqrt(squares / C(n) + eps);
}

// row = (x̂ or O)·weight·scale; returns rstd, 1 without a norm.
template <class C>
C apply_norm(const Norm& norm, int64_t n, C* row) {
  const C rstd = norm.eps < 0 ? C(1) : inverse_rms(row, n, C(norm.eps));
  const C factor = rstd * C(norm.scale);
  const C* weight = static_cast<const C*>(norm.weight);
  for (int64_t i = 0; i < n; ++i) row[i] *= weight ? factor * weight[i] : factor;
  return rstd;
}

// Turns dY into dO, in place, given the row of O before the norm: with g = dY·weight·scale and
// m = mean(g·x̂), dO = rstd·(g - m·x̂). Adds dY·scale·x̂ to dweight where there is one.
template <class C>
void norm_backward(const Norm& norm, int64_t n, const C* o, C rstd, C* dy, C* dweight) {
  const C* weight = static_cast<const C*>(norm.weight);
  const C scale = C(norm.scale);
  C mean = 0;
  for (int64_t i = 0; i < n; ++i) {
    const C x = o[i] * rstd;
    dy[i] *= scale;
    if (dweight) dweight[i] += dy[i] * x;
    if (weight) dy[i] *= weight[i];
    mean += dy[i] * x;
  }
  mean /= C(n);
  for (int64_t i = 0; i < n; ++i) dy[i] = rstd * (dy[i] - mean * o[i] * rstd);
}

}  // namespace
}  // namespace diffattn::cpu
