"""A thousand hostile calls, and proof that hostile.py would notice what is wrong."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import hostile_run
import pytest
import torch
from hostile_calls import Call
from hostile_changes import CHANGES
from hostile_targets import legal_call
from hostile_tensors import leave_the_saved
from hostile_verdict import judge, make

import diffattn_cuda

HERE = Path(__file__).resolve().parent
CALLS = 1000


def test_a_thousand_hostile_calls() -> None:
    """In a process of its own: a child forked from this one would lack its OpenMP threads."""
    package = Path(diffattn_cuda.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, str(HERE / "hostile.py"), "--calls", str(CALLS)],
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_calls_are_reproducible() -> None:
    first = [str(make(1, index)) for index in range(CALLS // 5)]
    assert first == [str(make(1, index)) for index in range(CALLS // 5)]
    assert sum(" failed: " in call for call in first) < CALLS // 250


def test_every_change_occurs() -> None:
    left = {*CHANGES}
    for index in range(CALLS):
        call = legal_call(2, index)
        left -= {change for change in left if _did(change, call)}
        if not left:
            return
    raise AssertionError(f"these never do anything: {left}")


def _did(change: Any, call: Call) -> bool:
    before = dict(call.args)
    try:
        return bool(change(call))
    except Exception:
        return False
    finally:
        call.args = before


def _fails_at_three(index: int) -> hostile.Report:
    if index == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"index": index, "kind": "right"}


def _sleeps_at_three(index: int) -> hostile.Report:
    if index == 3:
        signal.pause()
    return {"index": index, "kind": "right"}


@pytest.mark.parametrize(
    "planted, kind", [(_fails_at_three, "killed the process"), (_sleeps_at_three, "took too long")]
)
def test_a_death_is_the_call_s_own_and_the_run_goes_on(planted: hostile.Judge, kind: str) -> None:
    reports = hostile.supervise(planted, 1.0, [1, 2, 3, 4])
    assert [one["index"] for one in reports] == [1, 2, 3, 4]
    assert [one["kind"] for one in reports] == ["right", "right", kind, "right"]


@functools.cache
def _appending() -> int:
    """A call that appends to a cache, of fp32 and without rotary: its bound is tight."""
    for index in range(CALLS):
        call = legal_call(1, index)
        fp32 = call.target == "raw decode" and call.args["q"].dtype == torch.float32
        if fp32 and call.args["k"] is not None and call.args["rotary_cos"] is None:
            return index
    raise AssertionError("there is no such call")


OURS = hostile_run.ours


def _first_element(name: str, value: float) -> Any:
    """The right answer, except one element."""

    def run(call: Call) -> Any:
        answer: dict[str, Any] = {**OURS(call)}
        answer[name].view(-1)[0] = value
        return answer

    return run


def _fewer(call: Call) -> Any:
    answer: dict[str, Any] = {**OURS(call)}
    return answer | {"out": answer["out"][:0]}


def _write_to_q(call: Call) -> Any:
    answer = OURS(call)
    call.args["q"].fill_(1.0)
    return answer


def _raises(error: Exception) -> Any:
    def run(call: Call) -> Any:
        raise error

    return run


def _write_and_raise(call: Call) -> Any:
    call.args["k_cache"].fill_(7.0)
    raise ValueError("k is wrong")


def test_the_bound_of_bf16_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded pairs of probabilities excuse a few units of bf16, not a missing key."""
    for index in range(CALLS):
        call = legal_call(1, index)
        if call.target == "raw fwd" and call.args["q"].dtype == torch.bfloat16:
            break
    assert judge(call).kind == "right"
    answer = OURS(call)
    out = answer["out"]
    assert out is not None
    out[..., 0] += 0.1 * out.abs().amax()
    monkeypatch.setattr(hostile_run, "ours", lambda _: answer)
    assert judge(call).kind == "wrong"


def test_sums_may_overflow_to_no_other_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> Call:
        call = legal_call(1, _appending())
        for name in ("v", "v_cache"):
            call.args[name] = torch.full_like(call.args[name], 1e38)
        call.args["lam"] = torch.zeros_like(call.args["lam"])
        return call

    assert judge(call()).kind == "right"
    for value, kind in ((torch.inf, "right"), (torch.nan, "right"), (3e37, "wrong")):
        monkeypatch.setattr(hostile_run, "ours", _first_element("out", value))
        assert judge(call()).kind == kind, value


@pytest.mark.parametrize("name, known", [("q", False), ("dout", True)])
def test_a_backward_of_other_numbers_than_its_forward_is_not_judged(name: str, known: bool) -> None:
    for index in range(CALLS):
        call = legal_call(1, index)
        if call.target == "raw bwd":
            break
    leave_the_saved(call, name)
    assert call.comparable == known


PLANTED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a wrong element": (_first_element("out", 3.0), {}, "wrong"),
    "a NaN": (_first_element("lse", torch.nan), {}, "wrong"),
    "another shape": (_fewer, {}, "wrong"),
    "an input written": (_write_to_q, {}, "wrote to an input"),
    "what must be refused": (OURS, {"must_refuse": {"k": "k is odd"}}, "accepted"),
    "a legal call": (_raises(ValueError("k is wrong")), {"legal": True}, "refused a legal call"),
    "an AttributeError": (_raises(AttributeError("k")), {}, "wrong type of error"),
    "an internal assert": (
        _raises(RuntimeError("k: INTERNAL ASSERT FAILED")), {}, "wrong type of error"),
    "no message": (_raises(ValueError("")), {}, "error of no use"),
    "a page of text": (_raises(ValueError("k " * 200)), {}, "error of no use"),
    "no name": (_raises(ValueError("something is wrong")), {}, "named no argument"),
    "memory asked for too early": (
        _raises(MemoryError("std::bad_alloc")), {"misshapen": True}, "copied before it checked"),
    "a cache written": (_write_and_raise, {}, "changed an input and raised"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PLANTED))
def test_a_planted_fault_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run, known, kind = PLANTED[name]
    assert judge(legal_call(1, _appending())).kind == "right"
    call = legal_call(1, _appending())
    call.legal = False
    vars(call).update(known)
    monkeypatch.setattr(hostile_run, "ours", run)
    verdict = judge(call)
    assert verdict.kind == kind and verdict.bad, verdict
