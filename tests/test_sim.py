"""What only a simulated GPU can show: every device, many seeds, wrong offsets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import DTYPES, Case, short
from support.checks import check_answer, check_forward, check_saved
from support.data import Problem, flat, make_problem
from support.impls import Impl
from support.refusal import refuses
from support.simulator import PROFILES, Simulator
from test_errors import PACKED, packed_arguments
from torch import Tensor

BF16 = torch.bfloat16
SHAPES = [(32, 64), (64, 64), (64, 128), (96, 192), (128, 128), (128, 256)]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


def core(shape: tuple[int, int], **changes: Any) -> Case:
    """Several row blocks and key steps, ragged, masked on both sides, two heads on one."""
    case = Case(batch=1, sq=140, sk=150, heads=2, heads_k=1, dtype=BF16, causal=True, lam="token")
    case = case.but(d=shape[0], dv=shape[1], window=(100, 0), norm="affine", out_scale=0.2)
    return case.but(**changes)


def run(impl: Impl, p: Problem, **extra: Any) -> tuple[Tensor, Tensor]:
    options = p.options() | extra
    out, lse = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **options, return_lse=True)
    return out, lse


@SHAPE
@pytest.mark.parametrize("profile", PROFILES)
def test_every_device(impl: Impl, sim: Simulator, profile: str, shape: tuple[int, int]) -> None:
    with sim.on(profile):
        check_forward(impl, make_problem(core(shape)))


@SHAPE
def test_any_seed_gives_the_same_result(impl: Impl, sim: Simulator, shape: tuple[int, int]) -> None:
    """Nothing but ex2's last bits may follow from what the hardware leaves open."""
    p = make_problem(core(shape, sq=70, sk=90))
    for seed in range(20):
        with sim.on("sm_80", seed):
            check_answer(*run(impl, p), p)


@pytest.mark.needs("saves_o2")
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("norm", ["none", "plain", "affine"])
@SHAPE
def test_what_backward_will_need(
    impl: Impl, shape: tuple[int, int], norm: str, dtype: torch.dtype
) -> None:
    p = make_problem(core(shape, norm=norm, dtype=dtype))
    lam = p.lam_rows(torch.float32)
    names = ("out", "lse", "o", "o2", "rstd")
    result = torch.ops.diffattn.fwd(
        p.q, p.k, p.v, lam, p.norm_weight, None, None, 0, 0, p.softmax_scale(), *p.mask(),
        p.norm_eps, p.out_scale, False, True,
    )  # fmt: skip
    saved = {name: x for name, x in zip(names, result, strict=True) if x.numel()}
    assert ("o" in saved) == ("rstd" in saved) == (norm != "none") and "o2" in saved
    check_saved(saved, p)
    assert torch.equal(saved["out"], run(impl, p)[0]), "inference gives the same bits"


def test_more_than_65535_blocks(impl: Impl) -> None:
    """Grids are linear: y and z end at 65535. Sequences without queries cost a simulator little."""
    batch, kept = 65_540, [0, 1, 40_000, 65_539]
    lengths = torch.zeros(batch, dtype=torch.int32)
    lengths[kept] = 3
    cu = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    p = make_problem(Case(batch=4, sq=3, sk=3, heads=1, dtype=BF16))
    packed = [x.flatten(0, 1) for x in (flat(p.q), flat(p.k), p.v)]
    out = impl.varlen(*packed, 0.8, cu, cu, 3, 3)
    assert torch.equal(out, run(impl, p)[0].flatten(0, 1))


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("offset", [1, 4])
def test_unaligned_rows_are_copied(impl: Impl, where: str, offset: int) -> None:
    """Kernels copy 16 bytes at a time; a base or a stride that does not allow it costs a copy."""
    p = make_problem(Case(batch=1, dtype=BF16))
    expected, whole = run(impl, p), getattr(p, where)
    base = whole.new_empty(whole.numel() + offset)[offset:].view_as(whole).copy_(whole)
    row = whole.new_empty(*whole.shape[:-1], whole.shape[-1] + offset)[..., :-offset].copy_(whole)
    for strange in (base, row):
        got = run(impl, p.but(**{where: strange}))
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("name", list(PACKED))
def test_packed_argument_when_asked_to_look(
    impl: Impl, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFATTN_CHECK", "1")
    changed, words = PACKED[name]
    legal = packed_arguments(impl)
    impl.varlen(**legal)
    with refuses(*words):
        impl.varlen(**legal | as_tensors(changed))


@pytest.mark.needs("clamps_values")
@pytest.mark.parametrize("asked", ["1", "True", "YES", "on", "", "0", "false", "No", "OFF"])
def test_looking_is_switched_by_words(
    impl: Impl, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFATTN_CHECK", asked)
    wrong = packed_arguments(impl) | {"max_seqlen_q": 3}
    if asked in ("1", "True", "YES", "on"):
        with refuses("max_seqlen_q", "3", "4"):
            impl.varlen(**wrong)
    else:
        impl.varlen(**wrong)


@pytest.mark.needs("clamps_values")
@pytest.mark.parametrize("asked", ["2", "-1", "yess", " 1"])
def test_looking_is_not_switched_by_other_words(
    impl: Impl, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFATTN_CHECK", asked)
    with refuses(f"DIFFATTN_CHECK is {asked},", "true", "off"):
        impl.varlen(**packed_arguments(impl))


def as_tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        key: torch.tensor(value, dtype=torch.int32) if isinstance(value, list) else value
        for key, value in arguments.items()
    }


@pytest.mark.parametrize(
    "cu", [[0, 7, 5, 9], [0, 2, 5, 90], [0, 2, 5, 7], [3, 4, 5, 9], [-5, 2, 5, 9], [9, 5, 2, 0]],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("side", ["q", "k"])
def test_wrong_cu_seqlens_reach_nothing_outside(
    impl: Impl, sim: Simulator, side: str, cu: list[int]
) -> None:
    """The host cannot check them: rows without an owner are zero. Two sequences may own one row."""
    legal = packed_arguments(impl)
    legal[f"cu_seqlens_{side}"] = torch.tensor(cu, dtype=torch.int32)
    with sim.on("sm_80", race_global=False):
        out = impl.varlen(**legal)
    if side == "q":
        owned = [any(a <= row < b for a, b in zip(cu, cu[1:], strict=False)) for row in range(9)]
        assert bool((out[[not x for x in owned]] == 0).all())


def test_an_old_gpu_is_refused(impl: Impl, sim: Simulator) -> None:
    with sim.on("sm_75"), refuses("compute capability 7.5", "8.0"):
        run(impl, make_problem(core((64, 128))))
