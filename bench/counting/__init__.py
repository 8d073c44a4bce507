"""Counting what the CUDA kernels do; bench/counts.py prints it."""
