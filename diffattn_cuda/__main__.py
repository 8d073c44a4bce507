"""Say what is installed, and check every kernel that this machine can run.

    python -m diffattn_cuda                       # everything; exit code 1 if a kernel is wrong
    python -m diffattn_cuda --devices cuda:0      # one device, or one instruction set: cpu:avx2
    python -m diffattn_cuda --json                # the same, to be read by a program

Each line is a kernel in one dtype over a range of head dims, V1 and V2, more than one tile each way
and a ragged end, against the formula in fp64. It shows the worst row's error over its norm.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from .selftest import machine
from .selftest.checks import Outcome
from .selftest.machine import Device
from .selftest.workers import outcomes


def main(command_line: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m diffattn_cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", nargs="+", help="default: all; cpu, cuda, cpu:avx2, cuda:0")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    args = parser.parse_args(command_line)
    try:
        found = machine.devices()
    except RuntimeError as error:  # DIFFATTN_CPU_ISA asks for what is not there
        parser.error(str(error))
    chosen = [d for d in found if d.served and _asked(d, args.devices)]
    if not chosen:
        names = ", ".join(d.name for d in found if d.served)
        parser.error(f"--devices is {' '.join(args.devices or [])}, accepted here: {names}")
    start = time.perf_counter()
    if not args.json:
        _show_machine(found)
    results = {device.name: _check(device, quiet=args.json) for device in chosen}
    failures = sum(bool(o.failure) for outcomes in results.values() for o in outcomes)
    seconds = time.perf_counter() - start
    if args.json:
        print(json.dumps(_report(found, results, failures, seconds), indent=1))
    else:
        total = sum(map(len, results.values()))
        print(f"\n{total} checks, {failures} failed, {seconds:.0f} s")
    return 1 if failures else 0


def _asked(device: Device, names: list[str] | None) -> bool:
    return names is None or any(name in (device.name, device.name.split(":")[0]) for name in names)


def _show_machine(found: list[Device]) -> None:
    for title, lines in (
        ("versions", machine.versions()),
        ("built", machine.built()),
        ("hardware", machine.hardware()),
        ("kernels", {device.name: device.kernels for device in found}),
    ):
        print(title)
        for name, text in lines.items():
            print(f"  {name:<13} {text}")


def _check(device: Device, quiet: bool) -> list[Outcome]:
    if not quiet:
        print(f"\n{device.name}", flush=True)
    seen = []
    for outcome in outcomes(device.name):
        seen.append(outcome)
        if not quiet:
            print(_line(outcome), flush=True)
    return seen


def _line(outcome: Outcome) -> str:
    if outcome.failure:
        return f"  FAILED  {outcome.check}: {outcome.failure}"
    return (
        f"  ok      {outcome.check!s:<26} error {outcome.error:.1e}, allowed {outcome.allowed:.1e}"
        f"  {outcome.seconds:5.2f} s"
    )


def _report(
    found: list[Device], results: dict[str, list[Outcome]], failures: int, seconds: float
) -> dict[str, object]:
    return {
        "versions": machine.versions(),
        "built": machine.built(),
        "hardware": machine.hardware(),
        "kernels": [asdict(device) for device in found],
        "checks": {name: [o.as_dict() for o in outcomes] for name, outcomes in results.items()},
        "failed": failures,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
