"""The compiler's flags for each file of the CPU backend that has an instruction set of its own.

csrc/cpu/dispatch.cpp chooses at run time, so only these files get such flags.
"""

from __future__ import annotations

import platform

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
X86_FLAGS = {
    "kernels_portable.cpp": [],
    "kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512.cpp": AVX512,
    "kernels_avx512bf16.cpp": [*AVX512, "-mavx512bf16"],
    "kernels_avx512bf16_emulated.cpp": ["-mavx2", "-mfma", "-Wno-psabi"],  # vectors of 64 bytes
}
ON_X86 = platform.machine() in ("x86_64", "AMD64")
ISA_FLAGS = X86_FLAGS if ON_X86 else {"kernels_portable.cpp": []}
