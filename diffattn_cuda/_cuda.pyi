"""The CUDA backend; importing it registers its kernels with torch. It has no names of its own."""
