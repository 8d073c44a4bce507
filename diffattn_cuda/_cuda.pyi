"""The CUDA backend; importing it registers its kernels with torch."""

architectures: str  # that the build compiled for: "80", or "80;90a" with kernels for 9.0 alone
