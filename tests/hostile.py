"""Random illegal, odd and extreme calls of everything that takes tensors: none may crash.

A call is right if it agrees with the reference, or raises an error that says why. Each is drawn
from the seed and its number, so any can be made again by itself; `make sanitize` runs them under
ASan and UBSan.

python tests/hostile.py --calls 1000
python tests/hostile.py --seed 1234 --only 17
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hostile_calls import Call
from hostile_run import CONTEXTS, expected, ours
from hostile_verdict import Verdict, judge, make

import diffattn_cuda

BATCH = 100  # calls of a child
MEMORY = 4 << 30  # bytes of address space of a child, beyond what it starts with
SHOWN = 4  # examples of each kind of failure

Report = dict[str, Any]  # of a call: index, kind, detail, call, bad, seconds
Judge = Callable[[int], Report]


def report(seed: int, index: int) -> Report:
    start, described = time.time(), ""
    try:
        call = make(seed, index)
        described = str(call)
        verdict = judge(call)
    except Exception:
        verdict = Verdict("this program failed", traceback.format_exc(limit=-4))
    known = {"index": index, "call": described, "bad": verdict.bad, "seconds": time.time() - start}
    return known | vars(verdict)


def is_sanitized() -> bool:
    library = Path(diffattn_cuda._cpu.__file__).read_bytes()
    return b"__asan_init" in library and b"__ubsan_handle" in library


def _child(judge_one: Judge, indices: list[int], pipe: int, errors: int) -> None:
    os.dup2(errors, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not is_sanitized():  # which has a report and a limit of its own
        faulthandler.enable()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    warnings.simplefilter("ignore")  # of torch, about odd tensors
    torch.set_num_threads(1)
    for index in indices:
        os.write(pipe, f"{index}\n".encode())
        os.write(pipe, json.dumps(judge_one(index)).encode() + b"\n")


def supervise(judge_one: Judge, seconds: float, indices: list[int]) -> list[Report]:
    """Runs calls in a child; one that kills or blocks it is reported, and a new child goes on."""
    reports: list[Report] = []
    while len(reports) < len(indices):
        todo = indices[len(reports) :]
        with tempfile.TemporaryFile() as errors:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.close(reader)
                    _child(judge_one, todo, writer, errors.fileno())
                    status = 0
                finally:
                    os._exit(status)
            os.close(writer)
            lines = list(_lines(reader, seconds))
            os.close(reader)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            done = [json.loads(line) for line in lines if line.startswith(b"{")]
            reports += done
            if len(done) < len(todo):
                errors.seek(0)
                text = errors.read().decode(errors="replace")
                kind = "took too long" if lines and lines[-1] == b"late" else "killed the process"
                detail = f"{seconds} s" if kind == "took too long" else _cause(text, status)
                reports.append({"index": todo[len(done)], "kind": kind, "detail": detail,
                                "call": "", "bad": True, "seconds": 0.0})  # fmt: skip
    return reports


def _lines(reader: int, seconds: float) -> Iterator[bytes]:
    """What the child says; b"late" if it says nothing for so long."""
    rest = b""
    while select.select([reader], [], [], seconds)[0]:
        data = os.read(reader, 1 << 16)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
    yield b"late"


def _cause(stderr: str, status: int) -> str:
    """The sanitizer's or Python's own words, and where in our sources."""
    signalled = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status >> 8}"
    found = re.findall(r".*(?:runtime error|ERROR: AddressSanitizer|hard rss limit).*", stderr)
    why = re.sub(r"==\d+==|0x[0-9a-f]+|\(pc .*", "", found[0])[:200] if found else ""
    places = re.findall(r" (?:/\S*/)?(csrc/(?:cpu|bindings)/\S+:\d+)", stderr)
    frames = re.findall(r'((?:functional|ops|nn|hostile\w*)\.py)", line (\d+)', stderr)
    places += [f"{file}:{line}" for file, line in frames]
    return f"{signalled}: {why.strip()} {' < '.join(places[:3])}"


def run(seed: int, indices: list[int], jobs: int, seconds: float) -> list[Report]:
    _warm_up()
    batches = [indices[at : at + BATCH] for at in range(0, len(indices), BATCH)]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        work = partial(supervise, partial(report, seed), seconds)
        return [one for reports in pool.imap_unordered(work, batches) for one in reports]


def _warm_up() -> None:
    """Torch imports much on first use: once here, and not again in every child."""
    torch.set_num_threads(1)
    for context in {*CONTEXTS} - {"two threads"}:  # which a fork would not bring into the child
        heads = torch.ones(1, 1, 2, 8)
        args = {"q": heads, "k": heads, "v": heads[:, :, :1], "lam": 0.5, "norm_eps": 1e-5}
        call = Call("dense", args, random.Random(0), context)
        expected(call, args)
        with contextlib.suppress(RuntimeError):
            ours(call)
    torch.set_num_threads(1)


def summarize(seed: int, reports: list[Report], seconds: float) -> int:
    """Prints what happened and how to repeat it; how many calls were not right."""
    bad = [one for one in reports if one["bad"]]
    kinds: dict[str, list[Report]] = collections.defaultdict(list)
    for one in bad:
        kinds[_family(one)].append(one)
    for family, examples in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(examples)} × {family}")
        for one in sorted(examples, key=lambda one: one["index"])[:SHOWN]:
            call = one["call"] or make(seed, one["index"])
            print(f"  --seed {seed} --only {one['index']}: {call}\n      {one['detail']}")
    slowest = sorted(reports, key=lambda one: -one["seconds"])[:3]
    print("slowest:", ", ".join(f"{one['index']} {one['seconds']:.1f} s" for one in slowest))
    counts = collections.Counter(one["kind"] for one in reports)
    counts["compared"] = counts["right"] - sum(one["detail"] == "not compared" for one in reports)
    print(f"\nseed {seed}, {len(reports)} calls in {seconds:.0f} s: {dict(counts)}")
    return len(bad)


def _family(one: Report) -> str:
    detail = re.sub(r"-?\d[\d.e+-]*|'[^']*'|\([^()]*\)", "_", one["detail"].split("\n")[0])
    return f"{one['kind']}: {detail[:150]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--only", type=int, help="make this call alone, in this process")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=60, help="a call may take")
    parser.add_argument("--sanitized", action="store_true", help="insist on a sanitized build")
    options = parser.parse_args()
    print(f"{diffattn_cuda.__file__}, {'' if is_sanitized() else 'not '}sanitized")
    if options.sanitized and not is_sanitized():
        parser.error("--sanitized, but the package that was imported is not: see `make sanitize`")
    if options.only is not None:
        print(make(options.seed, options.only), flush=True)
        print(one := report(options.seed, options.only))
        return int(one["bad"])
    start = time.time()
    reports = run(options.seed, [*range(options.calls)], options.jobs, options.seconds)
    return int(summarize(options.seed, reports, time.time() - start) > 0)


if __name__ == "__main__":
    sys.exit(main())
