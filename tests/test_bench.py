"""What bench/ counts and predicts: its rules, and that the pages say what it found."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tools")]

import page  # noqa: E402
import plot  # noqa: E402
from counting import (  # noqa: E402
    context,
    model,
    runs,
    sass,
    streaming,
    streaming_speed,
    tables,
    training,
)
from counting.decoding import Step, decode  # noqa: E402
from counting.figures import Counts, misses, read, write  # noqa: E402
from counting.model import (  # noqa: E402
    A100,
    BEST,
    FA2,
    FA3,
    OVERLAP,
    WORST,
    Chain,
    Work,
    tiled_pairs,
)
from counting.runs import Launch, Shape  # noqa: E402
from stock import stock2  # noqa: E402
from support.impls import Impl  # noqa: E402
from support.simulator import Simulator  # noqa: E402
from timing.problem import Problem, make_inputs, oracle  # noqa: E402

CSV = ROOT / "docs" / "counts.csv"
WIDE = pytest.mark.parametrize("shape", [Shape(64, 128), Shape(128, 256)], ids=str)

# A main loop: copies, products, two alternatives, waiting for others, products.
LOOP = """
.L_x_1:
        @!P3 BRA `(.L_x_2)
        LDGSTS [R1], [R2.64]
.L_x_2:
        HMMA R4, R5, R6, R4
        @P0 BRA `(.L_x_3)
        {first}
        BRA `(.L_x_4)
.L_x_3:
        {second}
.L_x_4:
        @P2 BRA `(.L_x_5)
        MEMBAR
        ATOM R1
.L_x_5:
        HMMA R4, R5, R6, R4
        @P4 BRA `(.L_x_1)
        EXIT
"""
PLAIN, MASKED = ["FFMA R7"], ["ISETP P1", "FSEL R7", "FFMA R7"]


def opcodes(first: list[str], second: list[str]) -> dict[str, int]:
    text = LOOP.format(first="\n        ".join(first), second="\n        ".join(second))
    lines = [
        line if line.startswith(".") else f"        /*0000*/{line} ;" for line in text.split("\n")
    ]
    loop = sass.main_loop(lines)
    assert loop is not None
    return dict(loop.opcodes)


WARPGROUPS = """
.L_x_1:
    HGMMA R24
.L_x_2:
    @!P0 BRA `(.L_x_3)
    FENCE
.L_x_3:
    HGMMA R24
    HGMMA R88
    FFMA R1
    @P1 BRA `(.L_x_2)
    HGMMA R88
    @P2 BRA `(.L_x_1)
"""


def test_a_loop_of_warpgroups_lies_between_its_first_and_last_products() -> None:
    lines = [
        line if line.startswith(".") else f"        /*0000*/{line} ;"
        for line in WARPGROUPS.split("\n")
    ]
    loop = sass.main_loop(lines)
    assert loop is not None and dict(loop.opcodes) == {"BRA": 2, "HGMMA": 2, "FFMA": 1}


def test_a_loop_is_counted_as_most_of_its_steps_run_it() -> None:
    """Copies stay, waiting for others goes, and so does the alternative with masks."""
    usual = {"BRA": 5, "LDGSTS": 1, "HMMA": 2, "FFMA": 1}
    assert opcodes(PLAIN, MASKED) == usual
    # The first alternative leaps over the second, which costs the branch when it goes.
    assert opcodes(MASKED, PLAIN) == usual | {"BRA": 4}


def test_pipes_have_their_instructions() -> None:
    opcodes = Counter(
        {"HMMA": 4, "MUFU": 2, "FFMA": 3, "IMAD": 1, "LOP3": 5, "UIADD3": 7, "LDSM": 9}
    )
    loop = sass.Loop(opcodes)
    assert (loop.exp2, loop.fma, loop.alu) == (2, 4, 5)


def test_products_are_never_left_out() -> None:
    assert opcodes(["HMMA R4"], MASKED)["HMMA"] == 3
    assert opcodes(PLAIN, ["HMMA R4", "FSEL R7", "FFMA R7"])["HMMA"] == 3


@pytest.mark.parametrize("causal", [False, True])
def test_tiles_that_hold_a_visible_pair(causal: bool) -> None:
    for seqlen, rows, keys in ((200, 64, 32), (130, 32, 128), (64, 64, 64)):
        seen = {
            (i // rows, j // keys)
            for i in range(seqlen)
            for j in range(seqlen)
            if not causal or j <= i
        }
        assert tiled_pairs(seqlen, rows, keys, causal) == len(seen) * rows * keys


def test_the_model_gives_published_speeds() -> None:
    """As far as README says; the goals ask for less than a tenth."""
    for neighbour in [*FA2.values(), *FA3.values()]:
        assert abs(neighbour.error) < 0.05, neighbour
    assert FA2["fwd", 64].modelled == pytest.approx(194.6, abs=0.1)


def test_the_slowest_unit_and_the_cache_bound_the_time() -> None:
    tensor = Work(A100.tensor_flop, 0, 0, 0, 0, tile=(64, 64))
    both = Work(A100.tensor_flop, A100.shared_bytes, 0, 0, 0, tile=(64, 64))
    pipes = Work(0, 0, A100.exp2, A100.fma, A100.alu, tile=(64, 64))
    cache = Work(A100.tensor_flop, 0, 0, 0, 0, tile=(64, 64), l2_bytes=5 * A100.l2_bytes)
    together = [n ** (1 / OVERLAP) for n in (1, 2, 3)]
    assert [w.clocks(A100) for w in (tensor, both, pipes, cache)] == pytest.approx([*together, 5])
    assert tensor.causal_seconds(A100, 64) == pytest.approx(64 * 64 / A100.clock_rate)


def test_decoding_is_memory_and_what_nothing_hides() -> None:
    counts = read(CSV)
    least = (1 << 30) / A100.bandwidth
    for split in (False, True):
        step = model.decode(counts, A100, 1 << 30, split)
        for seconds, chains in zip(step.seconds, (BEST, WORST), strict=True):
            assert least < seconds - model.fixed(A100, split, chains) < 1.02 * least
    fixed = [model.fixed(A100, True, chains) for chains in (BEST, WORST)]
    assert fixed == pytest.approx([3.9e-6, 6.15e-6], abs=1e-7)


def test_a_read_hides_what_runs_meanwhile() -> None:
    memory, l2 = model.LATENCY[A100]
    chain = Chain(10, ((model.MEMORY, 100), (model.L2, 100)))
    assert chain.clocks(A100, each=2) == 20 + memory + l2
    assert chain.clocks(A100, each=4) == 40 + memory + 400


def test_what_a_pair_of_warps_leaves_out_is_gained_by_half_a_block() -> None:
    figures = {"tile_rows": 32, "tile_keys": 16, "block_rows": 128}
    figures |= dict.fromkeys(tables.FOR_MODEL, 1.0)
    counts = [Counts("fwd", 64, 128, "full", figures | {"tile_rows": rows}) for rows in (32, 128)]
    found = [model.work_of([count], "fwd", 64).tile for count in counts]
    assert found == [(64, 16), (128, 16)]


def test_a_kernel_of_another_name_is_not_passed_over() -> None:
    found = [Launch("_Z10fwd_kernelv", {}), Launch("_Z11fwd_kernel2v", {})]
    assert runs.only(found, "fwd_kernel") is found[0]
    with pytest.raises(SystemExit, match="0 launches of bwd_kernel"):
        runs.only(found, "bwd_kernel")
    with pytest.raises(SystemExit, match="make build"):
        sass.resources("_Z10fwd_kernelv")


def test_figures_survive_their_file_and_have_a_meaning(tmp_path: Path) -> None:
    counts = read(CSV)
    write(tmp_path / "counts.csv", counts)
    assert read(tmp_path / "counts.csv") == counts
    with pytest.raises(AssertionError, match="speed"):
        Counts("fwd", 64, 128, "S = 1", {"speed": 1.0})


def test_a_figure_over_its_limit_is_called_so() -> None:
    good = Counts("bwd", 64, 128, "", {"others_per_hmma": 2.5, "saved_bytes_per_row": 524})
    bad = Counts("bwd", 64, 128, "", {"others_per_hmma": 2.51, "saved_bytes_per_row": 525})
    assert misses(good) == [] and misses(bad) == ["others_per_hmma", "saved_bytes_per_row"]
    assert tables.limited(bad, "others_per_hmma") == "**2.510** (≤ 2.5)"


def test_the_pages_have_the_tables_of_the_counts(tmp_path: Path) -> None:
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs" / f"{name}.md" for name in ("counts", "predictions", "predictions_sm90")),
    ]
    for original in pages:
        (tmp_path / original.name).write_text(original.read_text())
    tables.write(tmp_path / "README.md", tmp_path, read(CSV))
    for original in pages:
        shown = (tmp_path / original.name).read_text()
        assert shown == original.read_text(), "python bench/plot.py counts"


def test_the_page_of_many_gpus_has_the_costs_of_the_formulas() -> None:
    assert context.text() in context.PAGE.read_text()
    fused, two = (context.ring(2**20, 64, calls) for calls in (1, 2))
    assert two.sent[0] == 1.5 * fused.sent[0]  # V travels twice: 6d instead of 4d


def test_the_page_of_streaming_heads_has_its_counts_and_predictions(tmp_path: Path) -> None:
    shown = streaming_speed.PAGE.read_text()
    assert all(text in shown for text in streaming_speed.texts().values()), "make counts"
    streaming_speed.draw(tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").stat().st_size > 1000


def test_no_prediction_of_streaming_heads_beats_its_bound() -> None:
    """At 1M only the fixed time is between them."""
    for device in model.DEVICES:
        for full in streaming_speed.SHARES:
            shares = [
                streaming_speed.LAYER.step(device, n, 1)
                / streaming_speed.LAYER.step(device, n, full)
                / streaming_speed.bound(n, full)
                for n in streaming_speed.SEQLENS
            ]
            assert max(shares) < 1 and shares[-1] > 0.95


def test_counts_of_streaming_heads_survive_their_file(tmp_path: Path) -> None:
    rows = streaming.read()
    streaming.write(tmp_path / "counts.csv", rows)
    assert (tmp_path / "counts.csv").read_text() == streaming.CSV.read_text()


def test_the_pages_have_the_figures_of_speed_and_accuracy(tmp_path: Path) -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "numerics.md"]
    for original in (*pages, ROOT / "docs" / "accuracy.csv"):
        (tmp_path / original.name).write_text(original.read_text())
    plot.write_speed([ROOT / "docs" / "speed.csv"], tmp_path, tmp_path / "README.md")
    plot.write_accuracy(tmp_path)
    for original in pages:
        assert (tmp_path / original.name).read_text() == original.read_text(), "make plot"
    assert all((tmp_path / f"{name}.svg").stat().st_size > 1000 for name in ("speed", "accuracy"))


def test_a_page_without_its_comments_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text("<!-- x: begin -->\nold\n<!-- x: end -->\nrest")
    page.rewrite(copy, "x", "new")
    assert copy.read_text() == "<!-- x: begin -->\nnew\n<!-- x: end -->\nrest"
    with pytest.raises(SystemExit, match="y: begin"):
        page.rewrite(copy, "y", "new")


def test_the_emulated_stock_kernel_is_right() -> None:
    """In fp32, where its roundings are none."""
    x = make_inputs(Problem("fwdbwd", "fp32", 1, 2, 2, 40, 50, 16, causal=True))
    assert x.dout is not None
    out = stock2(x)
    got = [out, *torch.autograd.grad(out, x.leaves[:3], x.dout)]
    for a, b in zip(got, oracle(x), strict=True):
        assert (a.double() - b).norm() / b.norm() < 1e-5


@WIDE
def test_the_counts_are_those_of_these_kernels(impl: Impl, sim: Simulator, shape: Shape) -> None:
    """docs/counts.csv, and so README, say what the build at hand does."""
    written = {
        c.kernel: c
        for c in read(CSV)
        if (c.headdim, c.headdim_v) == (shape.d, shape.dv) and "causal" not in c.problem
    }
    names = ["tile_rows", "tile_keys", "flop_ratio", "others_per_hmma", "loop_wavefronts_per_mma",
             "loop_wavefronts_ratio", "spilled_bytes"]  # fmt: skip
    for now in (training.forward(shape, 256, False), training.backward(shape, 256, False)):
        then = written[now.kernel]
        for name in names:
            expected = pytest.approx(then.figures[name], rel=0.02)
            assert now.figures[name] == expected, f"{now.kernel} {name}: make counts"
        assert misses(now) == misses(then)


def test_what_is_saved_and_what_decoding_reads(impl: Impl, sim: Simulator) -> None:
    assert runs.saved_bytes(Shape(32, 64), 64) == 8 * 32 + 12
    step, combine = decode(Step(Shape(32, 64), seqlen=1024, splits=2))
    assert misses(step) == [] and combine.kernel == "combine"
    assert step.figures["copied_ratio"] == pytest.approx(1, abs=1e-3)
    row = 2 * 2 * (64 + 2) + 1  # of each split and component O, its LSE and sum; how many splits
    assert step.figures["workspace_ratio"] == 4 * row * 4 / (1024 * 128 * 2)
