"""What to do with a GPU on the day that one is at hand: `make gpu`, `gpu-sanitize`, `gpu-counters`.

See docs/gpu.md. From a wheel that was built beforehand it needs torch, numpy, pytest and
hypothesis, no compiler and no network.
"""
