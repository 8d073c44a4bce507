// The CPU core without torch or Python: a small causal forward against the formula in double.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "diffattn.h"

namespace {

using namespace diffattn;

constexpr int64_t kRows = 70, kHeads = 2, kDim = 32, kDimV = 64;
constexpr double kLambda = 0.8;

std::vector<float> normal(int64_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> x(n);
  for (float& value : x) value = distribution(engine);
  return x;
}

// A core without threads of its own runs on the caller's.
void run_serially(int threads, void (*body)(void* ctx, int worker), void* ctx) {
  for (int worker = 0; worker < threads; ++worker) body(ctx, worker);
}

struct Tensors {
  std::vector<float> q = normal(kRows * kHeads * 2 * kDim, 1);  // [row, head, comp, d]
  std::vector<float> k = normal(kRows * kHeads * 2 * kDim, 2);  // [row, head, comp, d]
  std::vector<float> v = normal(kRows * kHeads * kDimV, 3);     // [row, head, dv]
  float lam = kLambda;
};

std::vector<float> forward(Tensors& t) {
  std::vector<float> out(kRows * kHeads * kDimV);  // [row, head, dv]
  std::vector<float> lse(2 * kHeads * kRows);      // [comp, head, row]
  FwdParams p{};
  p.dtype = DType::f32;
  p.shape = {1, kRows, kRows, kHeads, kHeads, kDim, kDimV, 2};
  for (int map : {kSignal, kNoise}) {
    p.maps[map].q = {t.q.data() + map * kDim, 0, kHeads * 2 * kDim, 2 * kDim, kDim / 2};
    p.maps[map].k = {t.k.data() + map * kDim, 0, kHeads * 2 * kDim, 2 * kDim, kDim / 2};
    p.maps[map].lse = {lse.data() + map * kHeads * kRows, 0, 1, kRows};
  }
  p.v = {t.v.data(), 0, kHeads * kDimV, kDimV, kDimV / 2};
  p.lam = {&t.lam, 0, 0, 0};
  p.out = {out.data(), 0, kHeads * kDimV, kDimV};
  p.softmax_scale = 1 / std::sqrt(double(kDim));
  p.mask = {-1, 0};  // causal
  cpu::fwd(p, {2, run_serially});
  return out;
}

double score(const Tensors& t, int64_t i, int64_t j, int64_t head, int64_t comp) {
  double sum = 0;
  for (int64_t x = 0; x < kDim; ++x)
    sum += double(t.q[((i * kHeads + head) * 2 + comp) * kDim + x]) *
           t.k[((j * kHeads + head) * 2 + comp) * kDim + x];
  return sum / std::sqrt(double(kDim));
}

std::vector<double> formula(const Tensors& t, int64_t i, int64_t head) {
  std::vector<double> out(kDimV);
  for (int64_t comp = 0; comp < 2; ++comp) {
    double total = 0;
    for (int64_t j = 0; j <= i; ++j) total += std::exp(score(t, i, j, head, comp));
    for (int64_t j = 0; j <= i; ++j) {
      const double p = std::exp(score(t, i, j, head, comp)) / total;
      for (int64_t x = 0; x < kDimV; ++x)
        out[x] += (comp ? -kLambda : 1) * p * t.v[(j * kHeads + head) * kDimV + x];
    }
  }
  return out;
}

}  // namespace

int main() {
  Tensors t;
  const std::vector<float> out = forward(t);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t head = 0; head < kHeads; ++head) {
      const std::vector<double> want = formula(t, i, head);
      for (int64_t x = 0; x < kDimV; ++x) {
        difference += std::pow(out[(i * kHeads + head) * kDimV + x] - want[x], 2);
        norm += want[x] * want[x];
      }
    }
  const double error = std::sqrt(difference / norm);
  std::printf("isa %s, relative error %.1e\n", cpu::isa(), error);
  return error < 1e-6 ? 0 : 1;
}
