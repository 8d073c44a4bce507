// One producer warp fills two buffers that three consumer warps drain; full and free are named barriers of 128 threads.

__device__ void sync_on(int barrier) { asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory"); }
__device__ void arrive_at(int barrier) { asm volatile("bar.arrive %0, 128;" ::"r"(barrier) : "memory"); }

constexpr int FULL = 1, FREE = 3;  // and the next one, for the second buffer

extern "C" __global__ void __launch_bounds__(128) specialise(const int* x, int* out, int tiles) {
    __shared__ int buffer[2][96];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 0) {
        for (int t = 0; t < tiles; t++) {
            if (t >= 2) sync_on(FREE + t % 2);  // the consumers have left this buffer
            for (int i = lane; i < 96; i += 32) buffer[t % 2][i] = x[t * 96 + i];
            arrive_at(FULL + t % 2);  // the buffer may be read
        }
    } else {
        int i = threadIdx.x - 32, sum = 0;
        for (int t = 0; t < tiles; t++) {
            sync_on(FULL + t % 2);  // the producer has filled it
            sum += buffer[t % 2][95 - i] * (t + 1);
            if (t + 2 < tiles) arrive_at(FREE + t % 2);  // it may be overwritten
        }
        out[i] = sum;
    }
}
