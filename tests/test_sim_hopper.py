"""The kernels of sm_90a on a simulated H100: asked for by name, so no other kernel can answer.

The whole suite also runs there (`pytest --device sim --sim-profile sm_90`), where narrow head dims
and the backward are sm_80's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.case import Case, short
from support.checks import check_forward
from support.data import flat, make_problem
from support.impls import Impl
from support.refusal import refuses
from support.simulator import Simulator
from test_components import check_components, components
from torch import Tensor

from diffattn_cuda import reference

for folder in ("tools", "bench"):
    sys.path.append(str(Path(__file__).resolve().parents[1] / folder))
from counting.runs import launches, only  # noqa: E402
from mutation.forward import check_hopper  # noqa: E402

FP16, BF16 = torch.float16, torch.bfloat16
SHAPES = [(64, 64), (64, 128), (128, 128), (128, 256)]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
DTYPE = pytest.mark.parametrize("dtype", [FP16, BF16], ids=short)
ROWS = 128  # of a CTA


@pytest.fixture(autouse=True)
def hopper(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIFFATTN_CUDA_KERNELS", "sm90")
    with sim.on("sm_90"):
        yield


def core(shape: tuple[int, int], **changes: object) -> Case:
    """Two row blocks, three tiles of keys, all ragged, masked on both sides; two heads on one."""
    case = Case(batch=1, sq=140, sk=300, heads=2, heads_k=1, d=shape[0], dv=shape[1], dtype=BF16)
    case = case.but(causal=True, lam="token", window=(200, 0), norm="affine", out_scale=0.2)
    return case.but(**changes)


CASES = {
    "window": {},
    "full": {"causal": False, "window": (-1, -1), "norm": "none", "lam": "head"},
    "causal": {"window": (-1, -1), "norm": "plain", "batch": 2, "heads": 4, "heads_k": 2},
    "square": {"sq": 384, "sk": 384, "window": (-1, -1), "norm": "none"},
    "rows without keys": {"sq": 300, "sk": 140, "window": (-1, -1)},
    "one row": {"sq": 1, "sk": 260, "window": (-1, -1)},
    "one key": {"sq": 130, "sk": 1, "causal": False, "window": (-1, -1)},
    "both sides": {"causal": False, "window": (30, 5), "regime": "sharp"},
    "negative scale": {"scale": -0.2, "norm": "none"},
    "steep": {"regime": "init", "window": (-1, -1)},
}


@SHAPE
@DTYPE
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_law(
    impl: Impl, shape: tuple[int, int], dtype: torch.dtype, changes: dict[str, object]
) -> None:
    check_forward(impl, make_problem(core(shape, dtype=dtype, **changes)))


@pytest.mark.parametrize("shape", [(40, 80), (48, 48), (56, 112), (72, 144), (96, 96), (120, 240)])
def test_widths_between(impl: Impl, shape: tuple[int, int]) -> None:
    """TMA fills the columns behind the last with zeros."""
    check_forward(impl, make_problem(core(shape)))


@SHAPE
def test_what_would_notice_a_mutant(impl: Impl, shape: tuple[int, int]) -> None:
    """Gaps of NaN, packed sequences, what backward needs, far rows, shared keys."""
    check_hopper(impl, *shape)


@SHAPE
def test_any_seed_gives_the_same_bits(impl: Impl, sim: Simulator, shape: tuple[int, int]) -> None:
    p = make_problem(core(shape, sq=70, heads=1))
    call = [flat(p.q), flat(p.k), p.v, p.lam]
    first = impl.func(*call, **p.options())
    for seed in range(1, 20):
        with sim.on("sm_90", seed):
            again = impl.func(*call, **p.options())
        assert bool((again - first).abs().max() <= 2**-6 * first.abs().max()), seed


@SHAPE
@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 200])
def test_nan_in_the_next_sequence_stays_there(
    impl: Impl, shape: tuple[int, int], length: int
) -> None:
    """The last tile of a sequence holds rows of the next one, in the middle of the packed batch."""
    d, dv = shape
    p = make_problem(
        Case(batch=1, sq=length, sk=length, heads=2, heads_k=1, d=d, dv=dv, dtype=BF16)
    )
    alone = impl.func(flat(p.q), flat(p.k), p.v, 0.8, causal=True)[0]
    rows = [flat(p.q)[0], flat(p.k)[0], p.v[0]]
    packed = [torch.cat([x, torch.full_like(x, torch.nan), x]) for x in rows]
    cu = torch.tensor([0, length, 2 * length, 3 * length], dtype=torch.int32)
    out = impl.varlen(*packed, 0.8, cu, cu, length, length, causal=True)
    assert torch.equal(out[:length], alone) and torch.equal(out[2 * length :], alone)
    assert bool(out[length : 2 * length].isnan().all())


@SHAPE
@pytest.mark.parametrize("streaming", [None, (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("sink", [3, 64, 140])
def test_streaming_heads(
    impl: Impl, shape: tuple[int, int], sink: int, streaming: tuple[bool, ...] | None
) -> None:
    changes = {"heads": 4, "heads_k": 2, "window": (40, 0), "sink": sink, "streaming": streaming}
    check_forward(impl, make_problem(core(shape, sq=300, sk=300, **changes)))


@pytest.mark.parametrize("sink", [3, 64])
def test_streaming_heads_of_packed_sequences(impl: Impl, sink: int) -> None:
    """Both intervals may end in one tile, behind which the next sequence lies."""
    p = make_problem(Case(batch=1, sq=100, sk=100, heads=2, heads_k=1, d=64, dv=128, dtype=BF16))
    mask = {"causal": True, "window_size": (20, 0), "sink_size": sink}
    alone = impl.func(flat(p.q), flat(p.k), p.v, 0.8, **mask)[0]
    rows = [flat(p.q)[0], flat(p.k)[0], p.v[0]]
    packed = [torch.cat([x, torch.full_like(x, torch.nan)]) for x in rows]
    cu = torch.tensor([0, 100, 200], dtype=torch.int32)
    out = impl.varlen(*packed, 0.8, cu, cu, 100, 100, **mask)
    assert torch.equal(out[:100], alone)


@SHAPE
def test_each_map_alone(impl: Impl, shape: tuple[int, int]) -> None:
    p = make_problem(core(shape))
    check_components(*components(impl, p), p)


BROADCAST: dict[str, Callable[[Tensor], Tensor]] = {
    "batch": lambda x: x[:1].expand(2, *x.shape[1:]),
    "head": lambda x: x[:, :, :1].expand(*x.shape[:2], 2, *x.shape[3:]),
}


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("dim", list(BROADCAST))
def test_broadcast_tensors(impl: Impl, which: str, dim: str) -> None:
    """TMA counts from 0 along a dimension that the tensor has only once."""
    p = make_problem(Case(batch=2, sq=140, sk=150, heads=2, heads_k=2, d=64, dv=128, dtype=BF16))
    given = {"q": p.q, "k": p.k, "v": p.v}
    given[which] = BROADCAST[dim](given[which])
    whole = {name: x.contiguous() for name, x in given.items()}
    assert torch.equal(impl.func(**given, lam=0.8), impl.func(**whole, lam=0.8))


def test_rows_that_are_one_row_are_sm_80_s(impl: Impl, monkeypatch: pytest.MonkeyPatch) -> None:
    """No box of TMA repeats a row."""
    p = make_problem(Case(batch=1, sq=70, sk=90, heads=1, d=64, dv=128, dtype=BF16))
    keys = p.k[:, :1].expand(-1, 90, -1, -1, -1)
    with refuses("DIFFATTN_CUDA_KERNELS is sm90", "accepted", "sm80"):
        impl.func(p.q, keys, p.v, 0.8)
    monkeypatch.delenv("DIFFATTN_CUDA_KERNELS")
    assert torch.equal(impl.func(p.q, keys, p.v, 0.8), impl.func(p.q, keys.contiguous(), p.v, 0.8))


@pytest.mark.parametrize(
    "case",
    [dict(d=32, dv=64), dict(d=8, dv=16), dict(d=64, dv=128, sk=0), dict(d=64, dv=64, softcap=2.0)],
    ids=str,
)
def test_what_is_sm_80_s(
    impl: Impl, monkeypatch: pytest.MonkeyPatch, case: dict[str, object]
) -> None:
    base = Case(batch=1, sq=70, sk=90, heads=1, dtype=BF16)
    p = make_problem(base.but(**case))
    with refuses("DIFFATTN_CUDA_KERNELS is sm90", "accepted", "sm80"):
        impl.func(p.q, p.k, p.v, p.lam, softcap=p.softcap)
    monkeypatch.delenv("DIFFATTN_CUDA_KERNELS")
    check_forward(impl, p)


@pytest.mark.parametrize("profile", ["sm_80", "sm_89", "sm_120"])
def test_no_other_device_has_it(impl: Impl, sim: Simulator, profile: str) -> None:
    p = make_problem(core((64, 128)))
    with sim.on(profile), refuses("DIFFATTN_CUDA_KERNELS is sm90", "accepted", "sm80"):
        check_forward(impl, p)


@SHAPE
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_the_tensor_cores_do_what_the_tiles_need(
    impl: Impl, sim: Simulator, shape: tuple[int, int], mask: str
) -> None:
    """Q·Kᵀ and P·V of each map, for tiles of which some row sees some key, and nothing else."""
    d, dv = shape
    p = make_problem(Case(batch=1, sq=512, sk=512, heads=1, d=d, dv=dv, dtype=BF16))
    causal = mask == "causal"
    found = launches(lambda: impl.func(p.q, p.k, p.v, 0.8, causal=causal))
    count = only(found, "fwd_kernel").counters
    keys = 128 if dv <= 128 else 64
    seen = reference.visible_keys(512, 512, causal, (-1, -1), "cpu")
    tiles = int(seen.view(512 // ROWS, ROWS, 512 // keys, keys).any(3).any(1).sum())
    assert count["wgmma_flop"] == tiles * ROWS * keys * 2 * 2 * (d + dv)
    assert count["mma_flop"] == count["wgmma_flop"], "no other product"


def test_a_row_s_result_does_not_follow_its_neighbours(impl: Impl) -> None:
    """A NaN in a row of Q, and one in V behind what other row blocks see."""
    p = make_problem(Case(batch=1, sq=256, sk=256, heads=1, d=64, dv=128, dtype=BF16))
    clean = impl.func(p.q, p.k, p.v, 0.8, causal=True)
    q, v = p.q.clone(), p.v.clone()
    q[0, 17], v[0, 130] = torch.nan, torch.nan
    dirty = impl.func(q, p.k, v, 0.8, causal=True)
    kept = (torch.arange(256) < 128) & (torch.arange(256) != 17)
    assert torch.equal(dirty[0, kept], clean[0, kept]) and bool(dirty[0, 17].isnan().all())
