// A bulk copy from shared to global memory that is under way: its thread has not waited for it, or its bytes have not
// arrived.
#pragma once

#include <vector>

#include "tensor_map.h"

namespace ptxsim {

// cp.reduce.async.bulk: element by element, in the order memory has them.
struct Reduction {
    bool on = false;
    u8 operation = 0;  // of atom and red (atomic.h)
    u8 type = 0;       // index of the type there
    u8 bytes = 0;      // of an element
};

struct BulkStore {
    int lane = 0;
    u32 group = 0, number = 0, from = 0;
    bool has_read = false, has_written = false, waited = false;
    Box box;
    Reduction reduction;
    std::vector<u8> data;  // what was read
};

}  // namespace ptxsim
