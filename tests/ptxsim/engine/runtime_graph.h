// What a stream capture keeps.
#pragma once

#include <vector>

#include "device.h"

namespace ptxsim {

struct HostFunction;

// A kernel with all that its launch says; the parameters are copies.
struct PreparedLaunch {
    HostFunction* function;
    LaunchConfig config;
};

// Kernels in the order of one stream.
using Graph = std::vector<PreparedLaunch>;

struct Capture {
    const void* stream;
    Graph graph;
    bool broken = false;  // the host has waited meanwhile
};

}  // namespace ptxsim
