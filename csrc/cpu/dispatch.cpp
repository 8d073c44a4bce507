// Chooses the instruction set once; DIFFATTN_CPU_ISA asks for one by name.
#include <atomic>
#include <iterator>

#include "../environment.h"
#include "kernels.h"

namespace diffattn::cpu {
namespace {

const Kernels* const kBestFirst[] = {
#if defined(__x86_64__)
    &kAvx512Bf16,         &kAvx512, &kAvx2,
#endif
    &kPortable,
#if defined(__x86_64__)
    &kAvx512Bf16Emulated,  // behind one that runs everywhere: only by its name
#endif
};

bool runs_here(const Kernels& k) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&k == &kAvx512Bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
  if (&k == &kAvx512) return avx512;
  if (&k == &kAvx2 || &k == &kAvx512Bf16Emulated) return avx2;
#endif
  return &k == &kPortable;
}

const Kernels& choose() {
  const std::string asked = environment("DIFFATTN_CPU_ISA");
  std::string accepted;
  for (const Kernels* k : kBestFirst) {
    if (!runs_here(*k)) continue;
    if (asked.empty() || asked == k->isa) return *k;
    accepted += accepted.empty() ? k->isa : std::string(", ") + k->isa;
  }
  throw std::runtime_error("DIFFATTN_CPU_ISA is " + asked +
                           ", accepted on this machine: " + accepted);
}

// Not a static object of the function: the lock that makes one once would stay closed in a child that is
// forked meanwhile.
const Kernels& kernels() {
  static std::atomic<const Kernels*> chosen{nullptr};
  const Kernels* k = chosen.load(std::memory_order_acquire);
  if (!k) chosen.store(k = &choose(), std::memory_order_release);
  return *k;
}

}  // namespace

void fwd(const FwdParams& p, const Parallel& parallel) { kernels().fwd(p, parallel); }
void bwd(const BwdParams& p, const Parallel& parallel) { kernels().bwd(p, parallel); }
void decode(const DecodeParams& p, const Parallel& parallel) { kernels().decode(p, parallel); }
const char* isa() { return kernels().isa; }

InstructionSet instruction_set(int index) {
  if (index >= static_cast<int>(std::size(kBestFirst))) return {nullptr, false};
  return {kBestFirst[index]->isa, runs_here(*kBestFirst[index])};
}

}  // namespace diffattn::cpu
