// Chooses an architecture's kernels for each call, by the device and what the call asks for.
// DIFFATTN_CUDA_KERNELS asks for one by name.
#include "../environment.h"
#include "common/limits.h"
#include "kernels.h"

namespace diffattn::cuda {
namespace {

const Kernels* const kBestFirst[] = {&kSm90, &kSm80};

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "device");
  return value;
}

// Of the current device: 10·major + minor.
int capability() {
  int device = 0;
  check(cudaGetDevice(&device), "device");
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}

std::string in_words(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

[[noreturn]] void refuse(const std::string& asked, int found, const std::string& accepted) {
  if (accepted.empty())
    throw std::runtime_error("diffattn: this GPU has compute capability " + in_words(found) +
                             ", the kernels need 8.0 or later");
  throw std::runtime_error("DIFFATTN_CUDA_KERNELS is " + asked +
                           ", accepted for this call on this GPU: " + accepted);
}

// Of the first architecture that runs on the device and takes the call.
template <class Params>
EntryPoint<Params> find(Offer<Params> Kernels::* which, const Params& p) {
  check_shape(p.dtype, p.shape);
  const std::string asked = environment("DIFFATTN_CUDA_KERNELS");
  const int found = capability();
  std::string accepted;
  for (const Kernels* k : kBestFirst) {
    if (!k || !k->runs_on(found)) continue;
    const Offer<Params>& offer = k->*which;
    if (!offer.takes || !offer.takes(p)) continue;
    if (asked.empty() || asked == k->name) return offer.entry;
    accepted += accepted.empty() ? k->name : std::string(", ") + k->name;
  }
  refuse(asked, found, accepted);
}

}  // namespace

EntryPoint<FwdParams> choose(const FwdParams& p) { return find(&Kernels::fwd, p); }
EntryPoint<BwdParams> choose(const BwdParams& p) { return find(&Kernels::bwd, p); }
EntryPoint<DecodeParams> choose(const DecodeParams& p) { return find(&Kernels::decode, p); }

}  // namespace diffattn::cuda
