"""Hopper kernels nobody here wrote, host code included: CUTLASS's examples 48 and 49 and FlashInfer's prefill, unchanged.

They compile for minutes (once: objects are kept), so they run by `pytest -m foreign`. Which checks have to be off is part of
what is tested, and so is why.
"""

import ctypes
import re

import foreign
import numpy as np
import ptxsim
import pytest
from conftest import CASES
from oracle_half import bf16_bits, bf16_values

pytestmark = pytest.mark.foreign

# Thread 0 expects the bytes that the elected lane loads; tiles lie at multiples of 128 bytes, and the base offset says 0.
CUTLASS_OFF = ("elect", "descriptor")


@pytest.fixture(scope="module", autouse=True)
def needs(nvcc):
    foreign.curand()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(512, 256, 64), (300, 200, 52)], ids=lambda v: "x".join(map(str, v)))
def test_a_gemm_with_clusters_of_eight(seed, size):
    """Example 48: tf32, clusters of 4 x 2 CTAs, multicast. It compares with a product of its own, bit by bit."""
    said, status = foreign.run_example("48", *map("--{}={}".format, "mnk", size), "--iterations=0", off=CUTLASS_OFF, seed=seed)
    assert status == 0 and "Disposition: Passed" in said, said


@pytest.mark.parametrize("off, error", [(("descriptor",), "Deadlock"), (("elect",), "Misaligned")])
def test_what_the_checks_say_of_it(off, error):
    said, status = foreign.run_example("48", "--m=512", "--n=256", "--k=64", "--iterations=0", off=off)
    assert status and f"\n{error}: " in "\n" + said, said


def test_seven_gemms_of_the_collective_builder():
    """Example 49: cooperative and ping-pong warpgroups, stream-K, epilogues by TMA and by trees of visitors."""
    said, status = foreign.run_example("49", "--m=256", "--n=128", "--k=64", off=CUTLASS_OFF)
    assert status == 0 and said.count(": Passed") == 7 and "Failed" not in said, said


# ---- FlashInfer ----

HEADS, KV_HEADS, WIDTH = 2, 1, 128


def prefill_library(*link):
    data = foreign.package("flashinfer", "flashinfer-python") / "data"
    if not (data / "include/flashinfer/attention/hopper/prefill_sm90.cuh").exists():
        pytest.skip("this flashinfer-python has no prefill for Hopper")
    cccl = [data / "cccl" / part for part in ("libcudacxx/include", "cub", "thrust") if (data / "cccl" / part).exists()]
    flags = ["-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED",
             *(f"-I{folder}" for folder in (*cccl, data / "include", *foreign.cutlass_folders())),
             *foreign.fallback(foreign.curand())]  # fmt: skip
    return ptxsim.Library([str(CASES / "flashinfer_prefill.cu")], arch="90a", flags=flags, link=link)


class Prefill:
    def __init__(self, queries, keys, causal, seed):
        rng = np.random.default_rng(0)
        host = [bf16_bits(rng.standard_normal((n, h, WIDTH))) for n, h in ((queries, HEADS), (keys, KV_HEADS), (keys, KV_HEADS))]
        q, k, v = (bf16_values(x).astype(np.float64) for x in host)
        scores = np.einsum("qhd,kgd->hqk", q, k) / WIDTH**0.5  # one head of keys
        if causal:
            scores[:, np.arange(keys) > np.arange(queries)[:, None] + keys - queries] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        self.exact = np.einsum("hqk,kgd->qhd", weights / weights.sum(-1, keepdims=True), v)
        self.sizes = queries, keys, HEADS, KV_HEADS, ctypes.c_float(WIDTH**-0.5), causal
        self.dev = ptxsim.Device("sm_90a", seed=seed, checks={"elect": False})
        self.tensors = [self.dev.tensor(x, name) for x, name in zip(host, "qkv")]
        self.out = self.dev.empty((queries, HEADS, WIDTH), np.uint16, "out")
        self.lse = self.dev.empty((queries, HEADS), np.float32, "lse")

    def run(self, library):
        with self.dev:
            assert library.prefill(*(ctypes.c_void_p(t.ptr) for t in (*self.tensors, self.out, self.lse)), *self.sizes) == 0
        return np.linalg.norm(bf16_values(self.out.numpy()) - self.exact) / np.linalg.norm(self.exact)


def without_extra_arrival(text):
    """Each thread arrives at the epilogue's barrier once without waiting and once waiting, and the barrier counts them alike:
    half of the warps, twice, complete it. Without the first arrivals it brings all of them together."""
    mended, count = re.subn(r"bar\.arrive (%r\d+), (%r\d+);(?=(?:(?!bar\.arrive)[\s\S])*?bar\.sync \1, \2;)", "", text)
    assert count == text.count(".visible .entry")
    return mended


@pytest.fixture(scope="module")
def mended():
    """A file of its own: the PTX of a library is read once."""
    library = prefill_library("-Wl,--build-id=sha1")
    ptxsim.on_ptx(without_extra_arrival)
    Prefill(64, 64, 1, 0).run(library)
    ptxsim.on_ptx(lambda text: text)
    return library


def test_a_warp_of_flashinfer_reads_rows_before_they_are_written():
    prefill = prefill_library()
    with pytest.raises(ptxsim.Race, match="stmatrix|ld.shared"):
        for seed in range(10):
            Prefill(256, 256, 1, seed).run(prefill)


@pytest.mark.parametrize("queries, keys, causal", [(256, 256, 1), (256, 256, 0), (200, 300, 1), (1, 130, 1)])
def test_with_one_barrier_that_brings_all_together_it_is_right(mended, queries, keys, causal):
    for seed in range(6):
        assert Prefill(queries, keys, causal, seed).run(mended) < 2.5e-3  # P and O are bf16
