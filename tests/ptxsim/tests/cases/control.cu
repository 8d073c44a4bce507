// Calls, switch tables, divergent loops, local arrays.

struct Pair { int quotient, rest; };

__device__ __noinline__ Pair divide(int a, int b) { return {a / b, a % b}; }
__device__ __noinline__ double mix(double x, float y, char z, long long w) { return x * 2 + y - z + double(w); }
__device__ __noinline__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

extern "C" __global__ void calls(const int* x, double* out, int* fib) {
    int i = threadIdx.x;
    Pair p = divide(x[i], i + 1);
    out[i] = mix(p.quotient, p.rest, char(i - 16), 1ll << i);
    if (i < 12) fib[i] = fibonacci(i);
}

// Bodies with loops and stores, so that nvcc makes a table (brx.idx) and not a chain of selections.
extern "C" __global__ void switches(const int* x, int* out, int* log) {
    int i = threadIdx.x, r = 0;
    switch (x[i]) {
        case 0: r = x[i] + 100; log[i] = 1; break;
        case 1: for (int k = 0; k < i; k++) r += x[k]; break;
        case 2: r = __popc(i); log[i] = r; break;
        case 3: r = i ^ 5; log[i] = 3;  // falls through
        case 4: r += 7; break;
        case 5: for (int k = i; k > 0; k /= 2) r = 3 * r + x[k]; break;
        case 6: r = -i; log[31 - i] += 0; break;
        case 7: r = fibonacci(i % 5); break;
        case 8: r = i * i; log[i] = -r; break;
        default: r = -1;
    }
    out[i] = r;
}

extern "C" __global__ void collatz(const unsigned* x, int* steps) {
    unsigned v = x[threadIdx.x];
    int n = 0;
    while (v != 1) {
        v = v & 1 ? 3 * v + 1 : v / 2;
        if (++n > 1000) break;
    }
    steps[threadIdx.x] = n;
}

// Nested divergence with early exits: which lanes are left, and what each of them has seen.
extern "C" __global__ void early_exits(int* out) {
    int i = threadIdx.x, sum = 0;
    for (int a = 0; a < 10; a++) {
        if (a == i % 7) continue;
        for (int b = 0; b <= a; b++) {
            if ((a + b) % 5 == i % 5) break;
            sum += a * b + 1;
        }
        if (sum > 100 + i) {
            out[i] = -sum;
            return;
        }
    }
    out[i] = sum;
}

extern "C" __global__ void local_sort(const int* x, int* out, int n) {
    int mine[16];
    for (int i = 0; i < n; i++) mine[i] = x[threadIdx.x * 16 + i];
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && mine[j - 1] > mine[j]; j--) {
            int t = mine[j];
            mine[j] = mine[j - 1];
            mine[j - 1] = t;
        }
    for (int i = 0; i < n; i++) out[threadIdx.x * 16 + i] = mine[i];
}
