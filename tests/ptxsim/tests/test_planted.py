"""Planted bugs: each raises the error of its kind, at its own line, under every seed; its correct twin raises none."""

import re
from dataclasses import dataclass

import numpy as np
import ptxsim
import pytest
from conftest import CASES

SEEDS = range(6)
RACE_OR_UNDEFINED = (ptxsim.Race, ptxsim.Undefined)


@dataclass(frozen=True)
class Planted:
    name: str
    errors: object              # the error class, or several
    says: str                   # a pattern in the message
    block: int = 32
    grid: int = 1
    x: int = 0                  # elements of the input; 0: the kernel takes none
    out: int = 32
    extra: tuple = ()
    check: str = ""             # the check that finds it, by name
    fresh: bool = True          # the output starts undefined
    case: str = "planted"       # its file
    cooperative: bool = False
    seeds: range = SEEDS


BUGS = [
    Planted("barrier_removed", ptxsim.Race, "race", 128, x=128, out=128, check="race"),
    Planted("barrier_moved", ptxsim.Race, "race", 128, x=384, out=128, check="race"),
    Planted("divergent_barrier", ptxsim.Divergence, "bar", 64, x=64, out=64, check="divergence"),
    Planted("missing_arrival", ptxsim.Deadlock, "bar|deadlock", 64, out=64),
    Planted("named_count_too_small", ptxsim.Race, "race", 96, x=96, out=96, check="race"),
    Planted("warp_sync_removed", ptxsim.Race, "race", 32, x=32, check="race"),
    Planted("two_warps_one_word", ptxsim.Race, "race", 64, out=64, check="race"),
    Planted("two_blocks_one_address", ptxsim.Race, "race", 32, grid=2, check="race_global"),
    Planted("read_of_another_block", ptxsim.Race, "race", 32, grid=2, check="race_global", fresh=False),
    Planted("wait_off_by_one", RACE_OR_UNDEFINED, "cp.async|wait", 32, x=256, check="async"),
    Planted("own_copy_read_before_wait", RACE_OR_UNDEFINED, "cp.async|wait", 32, x=128, check="async"),
    Planted("commit_forgotten", RACE_OR_UNDEFINED, "cp.async|wait", 32, x=128, check="async"),
    Planted("wait_without_barrier", RACE_OR_UNDEFINED, "race|cp.async|barrier", 64, x=256, out=64),
    Planted("refill_before_all_have_read", ptxsim.Race, "race", 64, x=512, out=64, check="race"),
    Planted("row_past_the_end", ptxsim.OutOfBounds, r"\bx\b", x=96, extra=(3,), check="bounds"),
    Planted("write_before_the_start", ptxsim.OutOfBounds, r"\bout\b", check="bounds"),
    Planted("shared_past_the_end", ptxsim.OutOfBounds, "shared", check="bounds"),
    Planted("misaligned_vector", ptxsim.Misaligned, "16", 31, x=132, check="align"),
    Planted("misaligned_copy", ptxsim.Misaligned, "16", x=128, check="align"),
    Planted("misaligned_matrix", ptxsim.Misaligned, "16", check="align"),
    Planted("unwritten_rows", ptxsim.Undefined, "undefined", check="undefined"),
    Planted("unwritten_shared", ptxsim.Undefined, "undefined", check="undefined"),
    Planted("branch_on_fresh_output", ptxsim.Undefined, "undefined", check="undefined"),
    Planted("wrong_mask", ptxsim.Divergence, "mask|lane", x=32, check="divergence"),
    Planted("caller_outside_its_mask", ptxsim.Divergence, "mask|lane", x=32, check="divergence"),
]
MANY_SEEDS = range(50)          # what hides such a bug is an order of events
BUGS += [Planted(name, ptxsim.Race, "race", case="planted_order", seeds=MANY_SEEDS, **rest) for name, rest in {
    "half_a_warp_syncs": dict(x=32, check="race"),
    "shuffle_of_the_others": dict(x=32, check="race"),
    "tile_too_small": dict(x=32, check="race"),
    "early_exit_before_sync": dict(x=32, check="race"),
    "arrival_without_wait": dict(x=32, check="race"),
    "warps_through_global": dict(block=64, x=64, out=64, check="race_global"),
    "lanes_through_global": dict(x=32, check="race_global"),
    "row_that_all_warps_read": dict(block=96, x=96, out=96, check="race_global"),
    "two_warps_one_global_word": dict(block=64, check="race_global"),
    "sums_not_yet_zero": dict(block=64, check="race_global"),
    "flag_without_release": dict(block=64, x=1, check="race_global"),
    "grid_sync_removed": dict(grid=3, out=96, check="race_global", cooperative=True),
    "write_after_the_last_grid_sync": dict(grid=3, out=96, check="race_global", cooperative=True),
}.items()]
EVERY_BUG = pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.name)


def marked_lines(bug):
    """The numbers of the source lines that carry @name; a mark alone on its line means the helper under it."""
    lines = (CASES / f"{bug.case}.cu").read_text().splitlines()
    marked = {i for i, line in enumerate(lines, 1) if re.search(rf"@{bug.name}\b", line)}
    return marked | {i + k for i in marked for k in range(1, 5) if lines[i - 1].startswith("//")}


def launch(bug, twin, build, seed=0, checks=None):
    dev = ptxsim.Device(profile="sm_80", seed=seed, threads=1, checks=checks)
    x = np.arange(bug.x, dtype=np.int32)
    inputs = [dev.tensor(x, name="x")] if bug.x else []
    out = dev.empty((bug.out,), np.int32, "out") if bug.fresh else dev.tensor(np.zeros(bug.out, np.int32), name="out")
    arguments = inputs + [out] + [np.int32(v) for v in bug.extra]
    kernel = build(bug.case).kernel(f"{bug.name}_{twin}")
    dev.launch(kernel, bug.grid, bug.block, arguments, cooperative=bug.cooperative)
    return out


@EVERY_BUG
def test_caught_under_every_seed(bug, compile_case):
    for seed in bug.seeds:
        with pytest.raises(bug.errors, match=f"(?is){bug.says}"):
            launch(bug, "bug", compile_case, seed)


@EVERY_BUG
def test_correct_twin_raises_nothing(bug, compile_case):
    for seed in bug.seeds:
        launch(bug, "ok", compile_case, seed)


def plain(instruction):
    return " ".join(instruction.split()).rstrip("; ")


@EVERY_BUG
def test_error_names_the_place(bug, compile_case):
    with pytest.raises(ptxsim.SimError) as caught:
        launch(bug, "bug", compile_case)
    error = caught.value
    text = compile_case(bug.case).text.splitlines()
    assert f"{bug.name}_bug" in error.kernel
    assert plain(error.ptx_text) == plain(text[error.ptx_line - 1])
    file, line = re.search(r"([\w.]+\.cu):(\d+)", error.source).groups()
    assert file == f"{bug.case}.cu" and int(line) in marked_lines(bug), error.source
    message = str(error)
    assert error.kernel in message and str(error.ptx_line) in message and f"{bug.case}.cu:{line}" in message
    assert error.cta is not None and error.warp is not None
    for word in ("CTA", "warp"):
        assert re.search(word, message, re.I), message


@pytest.mark.parametrize("bug", [b for b in BUGS if b.check in ("race", "race_global", "divergence", "undefined", "async")],
                         ids=lambda b: f"{b.name}-without-{b.check}")
def test_its_check_can_be_turned_off(bug, compile_case):
    """Off, the named check is silent; another one may still see the same bug by its own means."""
    try:
        launch(bug, "bug", compile_case, checks={bug.check: False})
    except ptxsim.SimError as error:
        names = bug.errors if isinstance(bug.errors, tuple) else (bug.errors,)
        assert bug.check == "async" or not isinstance(error, names), error


def test_out_of_bounds_names_tensor_and_bounds(compile_case):
    bug = next(b for b in BUGS if b.name == "row_past_the_end")
    with pytest.raises(ptxsim.OutOfBounds) as caught:
        launch(bug, "bug", compile_case)
    assert caught.value.tensor == "x" and caught.value.address and caught.value.lane is not None
    assert f"{caught.value.address:x}" in str(caught.value).lower() and "384" in str(caught.value)


def test_the_process_is_usable_after_an_error(compile_case):
    """Also the same device: its tensors stay and the next launch is clean."""
    bug = next(b for b in BUGS if b.name == "barrier_removed")
    dev = ptxsim.Device(profile="sm_80", threads=2)
    x, out = dev.tensor(np.arange(128, dtype=np.int32), name="x"), dev.empty((128,), np.int32, "out")
    for _ in range(3):
        with pytest.raises(ptxsim.Race):
            dev.launch(compile_case("planted").kernel("barrier_removed_bug"), 1, 128, [x, out])
        dev.launch(compile_case("planted").kernel("barrier_removed_ok"), 1, 128, [x, out])
        assert out.numpy().tolist() == list(range(127, -1, -1))
    assert bug.check == "race"
