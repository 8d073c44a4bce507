// Code that follows the architecture it was compiled for.
__global__ void ask(int* arch) {
#ifdef __CUDA_ARCH__
    *arch = __CUDA_ARCH__;
#endif
}

extern "C" int ask_architecture(int* arch) {
    ask<<<1, 1>>>(arch);
    return cudaDeviceSynchronize();
}
