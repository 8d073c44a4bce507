"""`make gpu` and its two companions, as far as a machine without a GPU can prove them.

Stand-ins for the device: a folder of tests that pass, fail, crash and hang; recorded outputs of
compute-sanitizer and ncu; a runner that writes the logs which the steps would.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
from gpu_day import __main__ as command  # noqa: E402
from gpu_day import cases, counters, day, deadline, page, place, sanitize, steps, suite  # noqa: E402
from gpu_day.place import Place  # noqa: E402
from gpu_day.steps import Done, Step  # noqa: E402


@pytest.fixture
def here(tmp_path: Path) -> Place:
    out = tmp_path / "out"
    out.mkdir()
    return Place(ROOT, out)


@pytest.mark.parametrize("what, said", [
    ("run", ["selftest: at most 240 s", "tests: at most 540 s", "speed: at most 660 s",
             "--device cuda", "gpu_day/speed.toml", "3 steps, at most 24 minutes"]),
    ("sanitize", [f"--tool {tool} --error-exitcode 99" for tool in sanitize.TOOLS]),
    ("counters", [*cases.COUNTED, "lts__t_bytes.sum,dram__bytes.sum", "regex:^(fwd_kernel|"]),
])  # fmt: skip
def test_what_would_run_is_listed(
    what: str, said: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main([what, "--dry-run", "--out", str(tmp_path / "none")]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in said), text
    assert not (tmp_path / "none").exists()


def test_the_driver_needs_no_package_and_little_else(tmp_path: Path) -> None:
    """Apart from torch, numpy, pytest and hypothesis, only Python's own."""
    blocked = ["diffattn_cuda", "griffe", "sybil", "transformers", "tqdm", "tabulate", "tomli",
               "matplotlib", "psutil"]  # fmt: skip
    code = (
        f"import sys; sys.modules |= dict.fromkeys({blocked}); sys.argv[1:] = ['run', '--dry-run']"
    )
    code += "\nimport runpy; runpy.run_module('gpu_day', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "tools"), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0 and "3 steps" in done.stdout, done.stderr


def test_the_wheel_is_unpacked_and_comes_first(tmp_path: Path) -> None:
    wheel = tmp_path / "diffattn_cuda-0.1.0-cp310-abi3-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("diffattn_cuda/__init__.py", "")
    assert place.newest_wheel(tmp_path) == wheel
    where = place.prepare(wheel, tmp_path / "out", "cuda")
    assert (where.package / "diffattn_cuda" / "__init__.py").exists()
    assert where.environment()["PYTHONPATH"].startswith(str(where.package) + ":")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no wheel in .*make wheel"):
        place.newest_wheel(tmp_path)
    (tmp_path / "a.whl").write_text("no archive")
    with pytest.raises(SystemExit, match=r"the wheel is .*a\.whl, expected a \.whl file"):
        place.prepare(tmp_path / "a.whl", tmp_path, "cuda")
    with pytest.raises(SystemExit, match="no compute-sanitizer-x on PATH, in CUDA_HOME/bin"):
        place.find_tool("compute-sanitizer-x")
    monkeypatch.setattr(place, "NEEDED", ("torch", "no_such_module"))
    with pytest.raises(SystemExit, match="lacks no_such_module, needed: torch"):
        place.prepare(None, tmp_path, "cuda")


def test_a_late_step_is_killed(here: Place) -> None:
    hang = "import time; print('began', flush=True); time.sleep(60)"
    late = Step("late", steps.python("-c", hang), 2.0, "a hang")
    done = steps.run(late, here.out, here.environment())
    assert done.killed and done.seconds < 30 and done.log.read_text() == "began\n"
    wrong = Step("wrong", steps.python("-c", "raise SystemExit(3)"), 60.0, "an error")
    done = steps.run(wrong, here.out, here.environment())
    assert (done.code, done.killed) == (3, False)


SUITE = {
    "conftest.py": """
import pathlib, pytest
import gpu_day.deadline
gpu_day.deadline.usable = lambda: not pathlib.Path("lost").exists()
def pytest_addoption(parser):
    parser.addoption("--device")
@pytest.fixture
def impl():
    return "cuda"
""",
    "test_forward.py": """
import os, pathlib, time
def test_rows(impl): pass
def test_every_width(impl): assert impl == "cpu", "not so"
def test_crash(impl): os._exit(13)
def test_hang(impl): time.sleep(60)
def test_illegal(impl):
    pathlib.Path("lost").touch()
    raise RuntimeError("an illegal memory access was encountered")
def test_without_the_device(): raise AssertionError
""",
    "test_varlen.py": """
import pathlib
def test_after_the_loss(impl): assert pathlib.Path("lost").exists()
""",
    "test_broken.py": "import no_such_module\n",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A suite of its own, in place of ours."""
    tests = tmp_path / "tests"
    tests.mkdir()
    for name, text in SUITE.items():
        (tests / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(suite, "files", lambda: sorted(tests.glob("test_*.py")))
    yield tests


def names(ids: Any) -> list[str]:
    return [name.split("::")[-1].split("/")[-1] for name in ids]


def test_crashes_hangs_and_lost_devices_cost_a_test_each(
    folder: Path, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "HANG", 4.0)
    found = suite.run(here, minutes=3)
    assert names(found.passed) == ["test_rows", "test_after_the_loss"] and not found.ended
    why = dict(zip(names(found.failed), found.failed.values(), strict=True))
    assert "not so" in why["test_every_width"] and "no_such_module" in why["test_broken.py"]
    assert "illegal memory access" in why["test_illegal"]
    assert "the process died in it" in why["test_crash"] and "4 s" in why["test_hang"]
    assert not found.not_reached and len(why) == 5
    begun = [e["begin"] for e in deadline.events(here.out / "tests.jsonl") if "begin" in e]
    assert names(begun)[0] == "test_every_width" and names(begun)[-1] == "test_after_the_loss"


def test_no_test_begins_when_the_time_is_up(folder: Path, here: Place) -> None:
    found = suite.run(here, minutes=0)
    assert not found.seconds.keys() - {"tests/test_broken.py"}
    assert len(found.not_reached) == 6


def test_a_suite_in_which_nothing_ran_has_not_passed(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(step: Step, out: Path, *_: Any) -> Done:
        return Done(step.name, 4, 1.0, out / "tests.log")

    found = suite.run(here, 1, nothing)
    assert "did not end in order" in found.ended
    assert not page.Day("cuda", suite=found).succeeded


def test_every_priority_is_a_test_of_ours() -> None:
    """Else a test that was renamed would fall to the end of the day."""
    texts = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    for part in deadline.PRIORITY:
        file, _, test = part.partition("::")
        found = [text for name, text in texts.items() if name.startswith(file)]
        assert found and any(f"def {test}" in text for text in found), part
    assert {"test_forward.py", "test_backward.py"} <= {path.name for path in suite.files()}
    assert deadline.rank("tests/test_forward.py::test_every_width[fp16-8]") == 1
    assert deadline.rank("tests/test_forward.py::test_new") < deadline.rank(
        "tests/test_x.py::test_y"
    )


CHECK = {"op": "backward", "dtype": "bf16", "head_dims": "40-64"}
RIGHT = {
    "check": CHECK,
    "error": 1e-3,
    "allowed": 1e-2,
    "worst": "dq",
    "failure": "",
    "seconds": 0.1,
}
REPORT = {
    "versions": {"torch": "2.14.1"},
    "built": {"CUDA kernels": "compute capability 8.0"},
    "hardware": {"cuda:0": "NVIDIA H100, compute capability 9.0"},
    "kernels": [{"name": "cuda:0", "kernels": "PTX for 8.0", "served": True}],
    "checks": {"cuda:0": [RIGHT]},
}
SPEED = f"""{",".join(page.PROBLEM)},peer,ms,ours_speedup,gflops,mm_percent,gbytes,bandwidth_percent
fwd,bf16,8,16,16,2048,2048,64,True,ours,2.5,,220000,40,,
fwd,bf16,8,16,16,2048,2048,64,True,sdpa4_flash,3.5,1.4,,,,
fwd,bf16,8,16,16,2048,2048,64,True,fa3_2,2.25,0.9,,,,
fwd,bf16,8,16,16,2048,2048,64,True,torch.mm,1.5,,550000,100,,
decode,bf16,1,32,8,1,4096,64,False,torch.mm,1.5,,550000,100,,
"""


def recorded(report: dict[str, Any], codes: dict[str, int]) -> Any:
    """A runner that leaves what the steps would."""

    def runner(step: Step, out: Path, *_: Any) -> Done:
        log = out / f"{step.name}.log"
        if step.name == "selftest":
            log.write_text("torch warns of something\n" + json.dumps(report, indent=1) + "\n")
        if step.name == "tests":
            log.write_text("..")
            with (out / "tests.jsonl").open("w") as record:
                for event in (
                    {"collected": ["t::a", "t::b", "t::c"]},
                    {"begin": "t::a", "at": time.time()},
                    {"end": "t::a", "outcome": "passed", "message": "", "seconds": 2.0},
                    {"begin": "t::b", "at": time.time()},
                    {"end": "t::b", "outcome": "failed", "message": "the law is broken: dk",
                     "seconds": 1.0},
                ):  # fmt: skip
                    record.write(json.dumps(event) + "\n")
        if step.name == "speed":
            log.write_text("")
            (out / "speed.csv").write_text(SPEED)
        return Done(step.name, codes.get(step.name, 0), 10.0, log)

    return runner


def test_the_page_of_a_day(here: Place) -> None:
    """Failures come before figures; every table is a CSV too."""
    wrong = RIGHT | {"failure": "dk, d = 64: a row is off"}
    report = REPORT | {"checks": {"cuda:0": [RIGHT, wrong]}}
    codes = {"selftest": 1, "tests": 1, "speed": steps.KILLED}
    assert not day.run(here, day.Times(1, 1), recorded(report, codes))
    text = (here.out / page.NAME).read_text()
    wanted = [
        "cuda:0: NVIDIA H100", "torch: 2.14.1", "cuda:0: PTX for 8.0", "## What failed",
        "- self-test, cuda:0: backward bf16 d = 40-64: dk, d = 64: a row is off",
        "- speed was killed after 10 s: speed.log", "- t::b: the law is broken: dk", "## Tests",
        "1 failed, 1 passed, 0 skipped, 1 not reached, in 3 s.", "## Speed",
        "| fwd bf16 B8 H16/16 Sq2048 Sk2048 d64 causal | 2.500 | 220.0 | 40.0 |  |  | "
        "fa3_2 0.90, sdpa4_flash 1.40 |",
        "| decode bf16 B1 H32/8 Sq1 Sk4096 d64 | left out: speed.log |",
    ]  # fmt: skip
    places = [text.find(part) for part in wanted]
    assert -1 not in places and places == sorted(places), text
    rows = list(csv.DictReader((here.out / "tests.csv").open()))
    assert [row["outcome"] for row in rows] == ["failed", "passed", "not reached"]
    rows = list(csv.DictReader((here.out / "selftest.csv").open()))
    assert [(row["device"], row["op"], bool(row["failure"])) for row in rows] == [
        ("cuda:0", "backward", False), ("cuda:0", "backward", True)]  # fmt: skip


def test_a_day_without_failures(here: Place) -> None:
    def runner(step: Step, out: Path, *rest: Any) -> Done:
        done = recorded(REPORT, {})(step, out, *rest)
        if step.name == "tests":
            record = out / "tests.jsonl"
            record.write_text(record.read_text().replace('"failed"', '"passed"'))
        return done

    assert day.run(here, day.Times(1, 1), runner)
    assert "Nothing of what ran." in (here.out / page.NAME).read_text()


MEMCHECK = """========= COMPUTE-SANITIZER
forward bf16 d = 8-32 is right
========= Invalid __global__ read of size 16 bytes
=========     at void fwd_kernel<FwdTraits<__nv_bfloat16, 64, 128>>(FwdParams)+0x1f30
=========     by thread (3,0,0) in block (1,0,0)
=========     Address 0x7f1c4de00a00 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f1c4de00000 of size 2,560 bytes
=========
========= ERROR SUMMARY: 1 error
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at bwd_kernel+0x90
=========     and Read access at bwd_kernel+0x100 [508 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
CLEAN = "========= COMPUTE-SANITIZER\ndecode is right\n========= ERROR SUMMARY: 0 errors\n"
NO_RACES = "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
CLEAN_RACES = CLEAN.replace("ERROR SUMMARY: 0 errors", NO_RACES)


@pytest.mark.parametrize("tool, text, code, errors, said", [
    ("memcheck", MEMCHECK, 99, 1, "Invalid __global__ read of size 16 bytes"),
    ("racecheck", RACECHECK, 99, 1, "Error: Race reported between Write access at bwd_kernel+0x90"),
    ("racecheck", CLEAN_RACES.replace("(0 errors, 0", "(0 errors, 2"), 0, 2, ""),
    ("initcheck", CLEAN, 0, 0, ""),
    ("racecheck", CLEAN_RACES, 0, 0, ""),
    ("synccheck", CLEAN, 1, None, "exit code 1"),  # the program itself says: wrong result
    ("memcheck", CLEAN.split("========= ERROR")[0], -9, None, "decode is right"),
    ("memcheck", "", 124, None, ""),
])  # fmt: skip
def test_what_a_sanitizer_says(
    tool: str, text: str, code: int, errors: int | None, said: str
) -> None:
    verdict = sanitize.read(tool, text, code)
    assert verdict.errors == errors and verdict.clean == (errors == 0)
    assert (said in " ".join(verdict.messages)) if said else not "".join(verdict.messages)


def test_the_sanitizers_run_the_core_set_with_allocations_apart(here: Place) -> None:
    seen = []

    def runner(step: Step, out: Path, environment: dict[str, str]) -> Done:
        seen.append(
            (step.command[:3], step.command[-1], environment["PYTORCH_NO_CUDA_MEMORY_CACHING"])
        )
        log = out / f"{step.name}.log"
        log.write_text({"memcheck": MEMCHECK, "racecheck": CLEAN_RACES}.get(step.name, CLEAN))
        return Done(step.name, 0, 1.0, log)

    verdicts = sanitize.run(here, "cs", runner)
    assert seen == [(["cs", "--tool", tool], "core", "1") for tool in sanitize.TOOLS]
    assert [v.clean for v in verdicts.values()] == [False, True, True, True]
    assert "| memcheck | 1 | Invalid" in "\n".join(page.sanitizer(verdicts))


HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)
LAUNCH = (
    '"0","4242","python3","127.0.0.1","fwd_kernel","1","7","(256, 1, 1)","(8, 1, 1)","0","9.0",'
    '"Command line profiler metrics",'
)
NCU = f"""==PROF== Connected to process 4242 (/usr/bin/python3)
==PROF== Profiling "fwd_kernel" - 0: 0%....50%....100% - 2 passes
==PROF== Disconnected from process 4242
{HEADER}
{LAUNCH}"dram__bytes.sum","byte","2,637,832"
{LAUNCH}"l1tex__data_pipe_lsu_wavefronts_mem_shared.sum","","242,688"
{LAUNCH}"lts__t_bytes.sum","byte","4,997,120"
{LAUNCH}"sm__inst_executed_pipe_tensor_op_hmma.sum","inst","199,680"
"""
QUERY = """Device NVIDIA H100 80GB HBM3 (GH100)
Metric Name                                 Metric Type  Metric Unit  Metric Description
dram__bytes                                 Counter      byte         # of bytes accessed in DRAM
l1tex__data_pipe_lsu_wavefronts_mem_shared  Counter                   # of shared memory wavefronts
lts__t_bytes                                Counter      byte         # of bytes requested
sm__inst_executed_pipe_tensor_op_hmma       Counter      inst         # of warp instructions
"""


def test_ncus_counts_beside_the_simulators() -> None:
    metrics = counters.choose(QUERY)
    assert metrics["mma"] == "sm__inst_executed_pipe_tensor_op_hmma.sum"
    with pytest.raises(SystemExit, match="has none of dram__bytes.sum"):
        counters.choose(QUERY.replace("dram__bytes ", "dram__octets "))
    counted = counters.read("training", NCU, metrics)
    simulated = {
        ("training", "fwd_kernel"): {"mma": 199680.0, "dram_bytes": 1318916.0},
        ("training", "bwd_kernel"): {"mma": 5.0},
    }
    found = counters.compare(simulated, counted)
    assert [(r.figure, r.ratio) for r in found] == [
        ("mma", 1.0),
        ("dram_bytes", 2.0),
        ("mma", None),
    ]
    text = "\n".join(page.ratios(found))
    assert "| training | fwd_kernel | dram_bytes | 1318916 | 2637832 | 2.000 |" in text
    assert "| training | bwd_kernel | mma | 5 | no launch |  |" in text
    assert counters.read("training", "==ERROR== no permission\n", metrics) == {}


def test_the_simulators_counts_cover_every_case(tmp_path: Path) -> None:
    recorded = counters.load(counters.SIMULATED)
    assert {case for case, _ in recorded} == set(cases.COUNTED)
    assert {kernel for _, kernel in recorded} == set(cases.KERNELS)
    counters.save(tmp_path / "again.csv", recorded)
    assert (tmp_path / "again.csv").read_bytes() == counters.SIMULATED.read_bytes()


@pytest.mark.parametrize("case", [name for name in cases.COUNTED if "d64" in name])
def test_the_counted_problems_run(case: str) -> None:
    with torch.random.fork_rng():
        cases.main(case, "cpu")
