// printf, assert and trap.
#include <cassert>
#include <cstdio>

extern "C" __global__ void say(int n, float x) {
    if (threadIdx.x == 3) printf("lane %d of %d: %.3f %s %c %lld %5u|\n", threadIdx.x, n, x, "text", 'c', 1ll << 40, 42u);
}

extern "C" __global__ void check(const int* x) { assert(x[threadIdx.x] < 100); }

extern "C" __global__ void stop(int at) {
    if (threadIdx.x == at) __trap();
}
