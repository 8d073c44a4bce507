"""bench/speed.py on groups of maps: its counts, its peers and its options."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from support.bench import problem_of

if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="tomli is not installed")


def grouped_problem(bench: Any, direction: str, r: int) -> Any:
    p = problem_of(bench, direction)
    return replace(p, nheads=4 * r, nheads_k=2, causal=direction != "decode", signal_per_noise=r)


@pytest.mark.parametrize("direction", ["fwd", "fwdbwd", "decode"])
@pytest.mark.parametrize("r", [2, 4])
def test_peers_of_groups(bench: Any, direction: str, r: int) -> None:
    p = grouped_problem(bench, direction, r)
    peers = bench.peers.peers_for(direction, grouped=True)
    peers.pop("flex2", None)
    names = ["ours", "eager", "sdpa2", "sdpa4", *([] if direction == "decode" else ["pairs"])]
    assert [*peers] == names
    x = bench.problem.make_inputs(p)
    assert x.q.shape == (p.batch, p.seqlen_q, 4, r + 1, p.headdim)
    assert bench.speed.right(peers, x) == names


def test_a_peer_with_another_order_of_signals_is_left_out(bench: Any) -> None:
    x = bench.problem.make_inputs(grouped_problem(bench, "fwd", 2))
    wrong = {"sdpa2": lambda x: bench.peers.sdpa2(replace(x, q=x.q[..., [1, 0, 2], :]))}
    assert bench.speed.right(wrong, x) == []


def test_flop_of_groups(bench: Any) -> None:
    """The table of docs/groups.md: 26d forward and 62d backward for each group of four."""
    for direction, pair, group in (("fwd", 8, 26), ("bwd", 20, 62), ("fwdbwd", 28, 88)):
        one = replace(grouped_problem(bench, direction, 4), nheads=8)
        seen = one.visible_pairs // 8  # of each head
        assert one.flop == group * one.headdim * seen * 2
        assert replace(one, signal_per_noise=1).flop == pair * one.headdim * seen * 8


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--signal-per-noise", "3"], "accepted: what divides --nheads 4"),
        (["--signal-per-noise", "0"], "--signal-per-noise is 0"),
        (["--signal-per-noise", "2", "--nheads-k", "4"], "whole ones"),
        (["--signal-per-noise", "2", "--streaming-share", "1"], "one of them"),
    ],
)
def test_options_of_groups(
    bench: Any, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.sweep.sweeps("", options)
    assert complaint in capsys.readouterr().err


def test_problems_of_groups(bench: Any) -> None:
    (args,) = bench.sweep.sweeps("", ["--signal-per-noise", "1", "4", "--seqlens", "8"])
    heads = [(p.nheads, p.nheads_k, p.signal_per_noise) for p in bench.sweep.problems(args)]
    assert heads == [(4, 4, 1), (4, 1, 4)]
