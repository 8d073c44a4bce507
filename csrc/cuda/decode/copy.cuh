// Copies of 16 bytes of the cache into shared memory.
#pragma once
#include <cute/arch/copy_sm80.hpp>
#include <type_traits>

namespace diffattn::cuda::decoding {

class PlainCopy {
 public:
  __device__ explicit PlainCopy(bool /*read_once*/) {}

  // Zeros, and nothing is read, if there is no such chunk.
  __device__ static void start(char* to, const char* from, bool exists) {
    cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy(
        *reinterpret_cast<const cute::uint128_t*>(from), *reinterpret_cast<cute::uint128_t*>(to),
        exists);
  }
};

#if __CUDA_ARCH__ >= 900
// Rows that one CTA reads are the first that L2 may give up: what other kernels will read stays there. CuTe has no such
// copy.
class HintedCopy {
 public:
  __device__ explicit HintedCopy(bool read_once) {
    uint64_t once, again;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(again));
    policy_ = read_once ? once : again;
  }

  __device__ void start(char* to, const char* from, bool exists) const {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;"
                 :
                 : "r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from), "r"(exists ? 16 : 0),
                   "l"(policy_)
                 : "memory");
  }

 private:
  uint64_t policy_;
};
#else
using HintedCopy = PlainCopy;
#endif

// The hint is two registers, which capped kernels do not have: one of them would spill.
template <class T>
using CacheCopy = std::conditional_t<T::kCapped, PlainCopy, HintedCopy>;

}  // namespace diffattn::cuda::decoding
