"""`python -m diffattn_cuda`: it passes here, and it can fail, in every way that a kernel can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.impls import Impl
from torch import Tensor

from diffattn_cuda import __main__ as command
from diffattn_cuda import _cpu, functional
from diffattn_cuda.selftest import checks, machine, workers
from diffattn_cuda.selftest.checks import Check, Outcome, checks_of, run

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", checks.OPS)
def test_a_kernel_is_right(impl: Impl, op: str) -> None:
    """In the simulator too: the bounds are those of the CUDA kernels as well."""
    outcome = run(Check(op, "fp16", "8-32"), impl.device)
    assert not outcome.failure and 0 < outcome.error <= outcome.allowed


def test_all_kernels_of_an_instruction_set() -> None:
    isa = _cpu.isa()
    done = subprocess.run(
        [sys.executable, "-m", "diffattn_cuda", "--devices", f"cpu:{isa}", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["versions"]["torch"] == torch.__version__ and report["failed"] == 0
    found = report["checks"][f"cpu:{isa}"]
    assert len(found) == len(checks_of("cpu")) == 4 * 5 * 4
    widths = {d for dims in checks.WIDTHS for d, _ in Check("forward", "fp32", dims).shapes()}
    assert widths == set(range(8, 129, 8))


def slightly_wrong(change: Callable[[list[Tensor]], None], op: str) -> Callable[..., Any]:
    """The op of torch.ops with its results changed in place."""
    right = getattr(torch.ops.diffattn, op)

    def wrong(*args: Any) -> Any:
        results = right(*args)
        change([t.data for t in results])
        return results

    return wrong


def last_row_lost(results: list[Tensor]) -> None:
    results[0][:, -1] = 0


FAULTS = {  # the op of torch.ops, the check that has to see it, the result that is named, the fault
    "a row of the output": ("fwd", Check("forward", "bf16", "40-64"), "out", last_row_lost),
    "1 % in fp16": ("fwd", Check("forward", "fp16", "72-96"), "out",
                             lambda r: r[0].mul_(1.01)),
    "0.01 % in fp32": ("fwd", Check("forward", "fp32", "72-96"), "out",
                                lambda r: r[0].mul_(1.0001)),
    "a NaN": ("fwd", Check("varlen", "fp64", "8-32"), "out",
              lambda r: r[0][3].fill_(torch.nan)),
    "the LSE": ("fwd", Check("forward", "bf16", "8-32"), "lse", lambda r: r[1].add_(1)),
    "dk of the last key": ("bwd", Check("backward", "bf16", "8-32"), "dk",
                           lambda r: r[1][:, -1].zero_()),
    "dλ": ("bwd", Check("varlen", "fp16", "8-32"), "dlam", lambda r: r[3].mul_(1.5)),
    "the norm weight's gradient": ("bwd", Check("backward", "fp32", "8-32"), "dnorm_weight",
                                   lambda r: r[4].mul_(1.01)),
    "one signal of a group": ("fwd", Check("groups", "fp16", "8-32"), "out",
                              lambda r: r[0][:, :, -1].mul_(1.01)),
    "dq of a group's noise": ("bwd", Check("groups", "bf16", "8-32"), "dq",
                              lambda r: r[0][..., -1, :].mul_(1.05)),
    "the LSE of a group's noise": ("decode", Check("groups", "fp16", "8-32"), "lse",
                                   lambda r: r[1][-1].add_(0.1)),
    "decoding": ("decode", Check("decode", "fp16", "8-32"), "out", lambda r: r[0].mul_(1.01)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_kernel_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, check, result, change = FAULTS[name]
    monkeypatch.setattr(torch.ops.diffattn, op, slightly_wrong(change, op))
    outcome = run(check, CPU)
    assert outcome.failure.startswith(f"{result}, d = ") and "at most" in outcome.failure


def test_a_key_that_is_not_appended_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.diff_flash_attn_with_kvcache

    def forgets(**arguments: Any) -> Any:
        caches = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
        return right(**arguments | caches)

    monkeypatch.setattr(functional, "diff_flash_attn_with_kvcache", forgets)
    assert "_cache, d = " in run(Check("decode", "fp64", "8-32"), CPU).failure


def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Processes that run `body` for each check; `say()` prints a right outcome."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, signal, sys, time\n"
        "def say(**more):\n"
        "    right = dict(error=.1, allowed=1., worst='', failure='', seconds=0.)\n"
        "    print(json.dumps(right | more), flush=True)\n"
        f"for n in range(int(sys.argv[2]), 4):\n    {body}\n"
    )
    monkeypatch.setattr(workers, "WORKER", [sys.executable, str(script)])
    monkeypatch.setattr(workers, "checks_of", lambda device: checks_of(device)[:4])


DEATHS = {
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV) if n == 1 else say()", "died: SIGSEGV"),
    "exits": ("sys.exit('out of luck') if n == 1 else say()", "exit code 1, out of luck"),
    "hangs": ("time.sleep(60) if n == 1 else say()", "no answer for 1 s"),
    "loses the device": ("say(failure='illegal' * (n == 1)); n == 1 and sys.exit(75)", "illegal"),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_process_that_dies_costs_one_check(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, said = DEATHS[how]
    monkeypatch.setattr(workers, "SILENCE", 1.0)
    worker(tmp_path, monkeypatch, body)
    found = list(workers.outcomes("cpu:portable"))
    assert [o.check for o in found] == checks_of("cpu")[:4]
    assert [bool(o.failure) for o in found] == [False, True, False, False]
    assert said in found[1].failure


def test_a_device_on_which_all_dies_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, monkeypatch, "sys.exit(1)")
    found = list(workers.outcomes("cuda:0"))
    assert len(found) == 4 and all(o.failure for o in found)
    assert "not run, nor what follows: 3 crashes" in found[-1].failure


def test_failures_make_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Outcome(Check("forward", "fp32", "8-32"), 1e-7, 1e-6, "out, d = 8, dv = 8")
    wrong = replace(right, check=Check("decode", "bf16", "40-64"), failure="out, d = 48: off")
    options = ["--devices", f"cpu:{_cpu.isa()}"]
    for found, code in (([right], 0), ([right, wrong], 1)):
        monkeypatch.setattr(command, "outcomes", lambda device, found=found: iter(found))
        assert command.main(options) == code
    said = capsys.readouterr().out
    assert "FAILED  decode bf16 d = 40-64: out, d = 48: off" in said
    assert "2 checks, 1 failed" in said


BROKEN = """
import sys
import torch
from diffattn_cuda import __main__
from diffattn_cuda.selftest import workers
from diffattn_cuda.selftest.checks import Check

right = torch.ops.diffattn.fwd

def wrong(*args):
    results = right(*args)
    results[0].data.mul_(1.05)
    return results

torch.ops.diffattn.fwd = wrong
workers.WORKER = [sys.executable, __file__]
workers.checks_of = lambda device: [Check(op, "bf16", "8-32") for op in ("forward", "decode")]
if sys.argv[1].startswith("--"):
    sys.exit(__main__.main(sys.argv[1:]))
sys.exit(workers.work(sys.argv[1], int(sys.argv[2])))
"""


def test_a_broken_build_fails_from_end_to_end(tmp_path: Path) -> None:
    """Both processes have a forward that is 5 % off, as a miscompiled one may be."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    sources = str(Path(functional.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script), "--devices", f"cpu:{_cpu.isa()}"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": sources},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "FAILED  forward bf16 d = 8-32: out, d = " in done.stdout
    assert "ok      decode bf16 d = 8-32" in done.stdout and "2 checks, 1 failed" in done.stdout


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--devices", "cuda:9"])
    assert stopped.value.code == 2 and "cuda:9, accepted here: " in capsys.readouterr().err


@pytest.mark.parametrize("capability, architectures, said", [
    ((8, 0), [80], "machine code for 8.0"),
    ((8, 9), [80, 86], "machine code for 8.6"),
    ((9, 0), [80], "PTX for 8.0, which the driver compiles at the first use"),
    ((9, 0), [80, 90], "machine code for 9.0"),
    ((12, 1), [80, 90, 120], "machine code for 12.0"),
    ((7, 5), [80], "none: the kernels need compute capability 8.0 or later"),
    ((8, 6), [90], "none: they were built for 9.0 or later"),
])  # fmt: skip
def test_which_kernels_serve_a_gpu(
    capability: tuple[int, int], architectures: list[int], said: str
) -> None:
    found = machine.serving(capability, architectures)
    assert (found.kernels if isinstance(found, machine.Device) else found) == said


@pytest.mark.parametrize("capability, said", [
    ((9, 0), "a forward for 9.0a; else PTX for 8.0, which the driver compiles at the first use"),
    ((10, 0), "PTX for 8.0, which the driver compiles at the first use"),
])  # fmt: skip
def test_a_forward_of_its_own_serves_that_gpu_alone(capability: tuple[int, int], said: str) -> None:
    found = machine.serving(capability, [80], own=[90])
    assert isinstance(found, machine.Device) and found.kernels == said


def test_what_was_compiled_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_compiled", lambda: ["80", "86", "90a"])
    assert machine.cuda_architectures() == [80, 86] and machine.own_architectures() == [90]
    monkeypatch.setattr(machine._ops, "missing_cuda", "")
    assert machine.built()["CUDA kernels"] == "compute capability 8.0, 8.6, 9.0a"
