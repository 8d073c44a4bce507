// Barriers in shared memory that count arrivals of threads and bytes of copies, and the copies themselves: one
// function per instruction. CuTe has them too, but its waits let the compiler move accesses of memory across.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace diffattn::cuda::sm90 {

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A phase is complete when so many threads have arrived and all bytes that they announced are there.
__device__ inline void init_barrier(uint64_t& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :
               : "r"(shared_address(&barrier)), "r"(arrivals)
               : "memory");
}

// Makes this thread's initialisations known to copies; others' threads need a barrier besides.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}

__device__ inline void arrive(uint64_t& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
               :
               : "r"(shared_address(&barrier))
               : "memory");
}

// Arrives, and announces the bytes of copies that will signal the barrier.
__device__ inline void arrive_for(uint64_t& barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

// Until the phase of this parity is complete. On a fresh barrier the phase of parity 1 counts as complete.
__device__ inline void wait(uint64_t& barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}"
      :
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
}

// Starts the copy of a box of a tensor, which signals the barrier with all its bytes. What lies outside the tensor
// becomes zeros.
__device__ inline void copy_box(void* to, const CUtensorMap& map, int col, int row, int head,
                                int batch, uint64_t& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];"
      :
      : "r"(shared_address(to)), "l"(&map), "r"(col), "r"(row), "r"(head), "r"(batch),
        "r"(shared_address(&barrier))
      : "memory");
}

// Makes this thread's accesses of shared memory visible to wgmma and copies, once a barrier orders them.
__device__ inline void publish_to_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

}  // namespace diffattn::cuda::sm90
