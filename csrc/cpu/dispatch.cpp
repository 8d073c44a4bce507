// Chooses the instruction set once. DIFFATTN_CPU_ISA=portable|avx2|avx512 asks for one by name.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace diffattn::cpu {
namespace {

const Kernels* const kBestFirst[] = {
#if defined(__x86_64__)
    &kAvx512, &kAvx2,
#endif
    &kPortable};

bool runs_here(const Kernels& k) {
#if defined(__x86_64__)
  if (&k == &kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (&k == &kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &k == &kPortable;
}

const Kernels& choose() {
  const char* asked = std::getenv("DIFFATTN_CPU_ISA");
  for (const Kernels* k : kBestFirst)
    if (runs_here(*k) && (!asked || !std::strcmp(asked, k->isa))) return *k;
  throw std::runtime_error(std::string("DIFFATTN_CPU_ISA is ") + asked +
                           ", which this machine does not run; accepted: portable, avx2, avx512");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace

void fwd(const FwdParams& p, const Parallel& parallel) { kernels().fwd(p, parallel); }
void bwd(const BwdParams& p, const Parallel& parallel) { kernels().bwd(p, parallel); }
void decode(const DecodeParams& p, const Parallel& parallel) { kernels().decode(p, parallel); }
const char* isa() { return kernels().isa; }

}  // namespace diffattn::cpu
