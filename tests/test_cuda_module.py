"""The CUDA module as it ships, as far as it goes without a GPU: it loads, registers and refuses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch
from support.refusal import refuses

import diffattn_cuda.ops  # noqa: F401  registers everything

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
MODULE = importlib.util.find_spec("diffattn_cuda._cuda")
built = pytest.mark.skipif(
    MODULE is None or torch.version.cuda is None,
    reason="the CUDA module was not built, or torch was built without CUDA",
)


def call(op: str, *args: Any) -> Any:
    """The kernel of the CUDA key, given CPU tensors: enough for everything before the launch."""
    return getattr(torch.ops.diffattn, op).default.redispatch(CUDA, *args)


def forward(dtype: torch.dtype, headdim: int = 8) -> Any:
    q = torch.zeros(1, 4, 2, 2, headdim, dtype=dtype)
    lam = torch.zeros(1, 4, 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return call(
        "fwd",
        q,
        q,
        q[..., 0, :],
        lam,
        None,
        None,
        None,
        0,
        0,
        1.0,
        -1,
        -1,
        0,
        -1,
        None,
        1.0,
        False,
        True,
    )


@built
def test_it_is_loaded_with_the_package() -> None:
    assert "diffattn_cuda._cuda" in sys.modules


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_without_kernels_are_refused(dtype: torch.dtype) -> None:
    with refuses("q has dtype", "fp16", "bf16", "CPU"):
        forward(dtype)


@built
def test_the_checks_are_those_of_the_cpu() -> None:
    with refuses("headdim 12", "multiple of 8"):
        forward(torch.bfloat16, headdim=12)


def test_backward_is_there_or_says_why_not() -> None:
    missing = ("bwd", "CUDA", "without CUDA" if torch.version.cuda is None else "build")
    q = torch.zeros(1, 1, 2, 2, 8)  # a right V too, in halves
    saved = (q, None, *[q] * 4, None, *[q] * 4, None, None, 0, 0)
    with refuses(*missing if MODULE is None else ("lam has shape", "nheads")):
        call("bwd", *saved, 1.0, -1, -1, 0, -1, None, 1.0, False)


@built
def test_decode_checks_what_the_cpu_need_not() -> None:
    """Caches are written in place: one whose rows are not aligned cannot be copied."""
    q, cache = torch.zeros(1, 1, 1, 2, 8, dtype=torch.bfloat16), torch.zeros(300).bfloat16()
    lam = torch.zeros(1, 1, 1)
    k, v = cache[1:257].view(1, 16, 1, 2, 8), torch.zeros(1, 16, 1, 16).bfloat16()
    tail = (*[None] * 9, 1.0, -1, -1, 0, -1, True, None, 1.0, 0)
    with refuses("k_cache", "16 bytes"):
        call("decode", q, k, v, lam, *tail)
    with refuses("q has dtype", "fp16", "bf16", "CPU"):
        call("decode", q.float(), k.float(), v.float(), lam, *tail)


@built
def test_the_cuda_runtime_is_inside_and_hidden() -> None:
    """Torch's runtime in this process may be of another version: the two must not meet."""
    assert MODULE is not None and MODULE.origin is not None
    needed = _output("readelf", "--dynamic", MODULE.origin)
    assert "libtorch.so" in needed and "libcudart" not in needed
    exported = _output("nm", "--dynamic", "--defined-only", MODULE.origin)
    assert "PyInit__cuda" in exported and "cudaLaunchKernel" not in exported


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
