// For wheels that run on glibc 2.28 (tools/build_manylinux.py). libstdc++'s headers ask this variable, which
// glibc has since 2.32, whether one thread runs alone, to count references without atomics. Ours says no.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
