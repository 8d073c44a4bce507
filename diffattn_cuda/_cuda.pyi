"""The CUDA backend; importing it registers its kernels with torch."""

architectures: str  # compute capabilities that the build compiled for, "80" or "80;90"
