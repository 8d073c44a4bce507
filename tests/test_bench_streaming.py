"""bench/speed.py on heads that stream: its counts, its peers and its options."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.bench import problem_of

from diffattn_cuda import reference

if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="tomli is not installed")


def streaming_problem(bench: Any, direction: str, share: float) -> Any:
    p = problem_of(bench, direction)
    return replace(p, causal=True, sink=3, left=7, streaming_share=share)


@pytest.mark.parametrize("direction", ["fwd", "decode"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pairs_and_bytes_of_heads_that_stream(bench: Any, direction: str, share: float) -> None:
    p = replace(streaming_problem(bench, direction, share), seqlen_k=40)
    q = torch.zeros(1, p.seqlen_q, p.nheads, 2, 1)
    heads = [h >= p.full_heads for h in range(p.nheads_k) for _ in range(p.nheads // p.nheads_k)]
    maps, _ = reference.attention_maps(
        q, torch.zeros(1, 40, p.nheads, 2, 1), causal=True,
        **({"window_size": (7, 0), "sink_size": 3, "streaming_heads": heads} if share else {}),
    )  # fmt: skip
    assert p.visible_pairs == p.batch * int((maps[0] > 0).sum())
    if direction == "decode":
        keys = int((maps[0, :, :: p.nheads // p.nheads_k] > 0).sum())
        assert p.cache_bytes == p.batch * keys * 4 * p.headdim * 4


@pytest.mark.parametrize("direction", ["fwd", "fwdbwd", "decode"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_peers_of_heads_that_stream(bench: Any, direction: str, share: float) -> None:
    """FlexAttention's recipe runs in test_flex_attention_streams."""
    p = streaming_problem(bench, direction, share)
    peers = bench.peers.peers_for(direction, streaming=True)
    assert ("flex2" in peers) == (direction == "fwd")
    peers.pop("flex2", None)
    assert bench.speed.right(peers, bench.problem.make_inputs(p)) == [*peers]
    assert [*peers] == ["ours", "full", "ours2", "eager"]
    full = bench.peers.inputs_for("full", bench.problem.make_inputs(p)).problem
    assert full.visible_pairs > p.visible_pairs


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_streams(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler, which the mask does not need."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(bench.peers, "_compiled_flex", lambda: flex_attention)
    x = bench.problem.make_inputs(streaming_problem(bench, "fwd", 0.5))
    assert bench.speed.right({"flex2": bench.peers.PEERS["flex2"]}, x) == ["flex2"]
    wrong = {"flex2": lambda x: bench.peers.flex2(replace(x, problem=replace(x.problem, sink=4)))}
    assert bench.speed.right(wrong, x) == []


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--streaming-share", "1.5"], "accepted: 0 to 1"),
        (["--streaming-share", "1", "--mask", "full"], "accepted: --mask causal"),
        (["--sink", "-1"], "accepted: 0 or more"),
    ],
)
def test_streaming_options(
    bench: Any, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.sweep.sweeps("", options)
    assert complaint in capsys.readouterr().err
