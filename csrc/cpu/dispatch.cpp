// Chooses the instruction set once; DIFFATTN_CPU_ISA asks for one by name.
#include <atomic>
#include <iterator>

#include "../environment.h"
#include "kernels.h"

namespace diffattn::cpu {
namespace {

// The tables that serve each dtype under one name.
struct Choice {
  const char* isa;
  const Kernels& kernels;  // of numbers
  const Calls& bf16;

  const Calls& operator[](DType t) const {
    if (t == DType::bf16) return bf16;
    return t == DType::f64 ? kernels.doubles : kernels.floats;
  }
};

const Choice kBestFirst[] = {
#if defined(__x86_64__)
    {"avx512bf16", kAvx512, kAvx512Bf16},
    {"avx512", kAvx512, kAvx512.floats},
    {"avx2", kAvx2, kAvx2.floats},
#endif
    {"portable", kPortable, kPortable.floats},
#if defined(__x86_64__)
    // behind one that runs everywhere: only by its name
    {"avx512bf16-emulated", kAvx2, kAvx512Bf16Emulated},
#endif
};

bool runs_here(const Choice& choice) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&choice.bf16 == &kAvx512Bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
  if (&choice.kernels == &kAvx512) return avx512;
  if (&choice.kernels == &kAvx2) return avx2;
#endif
  return &choice.kernels == &kPortable;
}

const Choice& choose() {
  const std::string asked = environment("DIFFATTN_CPU_ISA");
  std::string accepted;
  for (const Choice& choice : kBestFirst) {
    if (!runs_here(choice)) continue;
    if (asked.empty() || asked == choice.isa) return choice;
    accepted += accepted.empty() ? choice.isa : std::string(", ") + choice.isa;
  }
  throw std::runtime_error("DIFFATTN_CPU_ISA is " + asked +
                           ", accepted on this machine: " + accepted);
}

// Not a static object of the function: the lock that makes one once would stay closed in a child that is
// forked meanwhile.
const Choice& chosen() {
  static std::atomic<const Choice*> kept{nullptr};
  const Choice* choice = kept.load(std::memory_order_acquire);
  if (!choice) kept.store(choice = &choose(), std::memory_order_release);
  return *choice;
}

}  // namespace

void fwd(const FwdParams& p, const Parallel& parallel) { chosen()[p.dtype].fwd(p, parallel); }
void bwd(const BwdParams& p, const Parallel& parallel) { chosen()[p.dtype].bwd(p, parallel); }
void decode(const DecodeParams& p, const Parallel& parallel) {
  chosen()[p.dtype].decode(p, parallel);
}
const char* isa() { return chosen().isa; }

InstructionSet instruction_set(int index) {
  if (index >= static_cast<int>(std::size(kBestFirst))) return {nullptr, false};
  return {kBestFirst[index].isa, runs_here(kBestFirst[index])};
}

}  // namespace diffattn::cpu
