// Working memory, aligned to cache lines, and the row length that suits it.
#pragma once
#include "../memory.h"
#include "gemm.h"

namespace diffattn::cpu {
namespace {

constexpr int64_t kLine = 64;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The product of sizes. One that wrapped around would be a small buffer for large loops.
template <class... Sizes>
int64_t product(int64_t first, Sizes... others) {
  int64_t all = first;
  if ((__builtin_mul_overflow(all, int64_t(others), &all) || ...))
    throw OutOfMemory("differential attention needs more than 2^63 bytes of working memory");
  return all;
}

template <class C>
class Buffer {
 public:
  explicit Buffer(int64_t n)
      : data_(static_cast<C*>(take_memory(std::size_t(product(n ? n : 1, sizeof(C)))))) {}
  ~Buffer() { give_back_memory(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  C* get() const { return data_; }
  operator C*() const { return data_; }

 private:
  C* data_;
};

// Columns of a buffer row that holds n numbers: whole tiles.
template <class C>
constexpr int64_t padded(int64_t n) {
  return round_up(n, NR<C>);
}

// Length of such a row: an odd number of cache lines, so that equal columns of successive rows
// fall into different sets of the cache.
template <class C>
constexpr int64_t leading(int64_t n) {
  constexpr int64_t size = sizeof(C);
  return (ceil_div(padded<C>(n) * size, kLine) | 1) * kLine / size;
}

}  // namespace
}  // namespace diffattn::cpu
