// Torch's threads in the form that the waist takes.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "../diffattn.h"

namespace diffattn::bindings {

inline cpu::Parallel parallel() {
  const auto run = [](int threads, void (*body)(void*, int), void* ctx) {
    torch::stable::parallel_for(0, threads, 1, [=](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) body(ctx, int(worker));
    });
  };
  return {int(torch::stable::get_num_threads()), run};
}

}  // namespace diffattn::bindings
