// Items of unequal cost over threads: each worker takes the next item when it is free.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "../../diffattn.h"

namespace diffattn::cpu {
namespace {

// Calls f(item, worker) once for each item < n. The order of items is the order of their start;
// what f computes must not depend on which worker runs it.
template <class F>
void for_each(const Parallel& parallel, int64_t n, const F& f) {
  struct Context {
    const F& f;
    int64_t n;
    std::atomic<int64_t> next{0};
  } context{f, n};
  const auto body = [](void* p, int worker) {
    auto& c = *static_cast<Context*>(p);
    for (int64_t i = c.next++; i < c.n; i = c.next++) c.f(i, worker);
  };
  if (n == 0) return;
  if (n == 1 || parallel.threads == 1) return body(&context, 0);
  parallel.run(parallel.threads, body, &context);
}

// One T for each worker, made on the calling thread.
template <class T>
class Workers {
 public:
  template <class... Args>
  explicit Workers(int threads, const Args&... args) : each_(new std::unique_ptr<T>[threads]) {
    for (int w = 0; w < threads; ++w) each_[w].reset(new T(args...));
  }
  T& operator[](int worker) { return *each_[worker]; }

 private:
  std::unique_ptr<std::unique_ptr<T>[]> each_;
};

}  // namespace
}  // namespace diffattn::cpu
