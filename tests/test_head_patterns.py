"""Which heads keep the whole context: selected, set, and stored in DuoAttention's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.refusal import refuses
from torch import nn

from diffattn_cuda import duo
from diffattn_cuda.nn import MultiheadDiffAttn

SINK, RECENT = 3, 8


def test_selected_heads() -> None:
    """Largest first; of equal ones the earlier; the same every time."""
    gates = torch.tensor([[0.5, 1.0, 0.5], [1.0, 0.5, 0.0]])
    state = torch.get_rng_state()
    kept = [duo.select_heads(gates, keep).int().flatten().tolist() for keep in (0, 1 / 3, 0.5, 1)]
    assert kept == [[0] * 6, [0, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 0], [1] * 6]
    assert duo.select_heads(gates, 0.75).sum() == 5  # 4.5, rounded up
    assert torch.equal(torch.get_rng_state(), state)
    equal = torch.full((40, 50), 0.25)  # more than a sort without order keeps in order
    assert torch.equal(duo.select_heads(equal).flatten().nonzero()[:, 0], torch.arange(1000))
    assert duo.select_heads(nn.Parameter(gates)).dtype == torch.bool
    with refuses("gates is (3,)", "(layers, nheads_k)"):
        duo.select_heads(gates[0])
    with refuses("gates is (2, 3)", "without NaN"):
        duo.select_heads(gates.masked_fill(gates == 0, torch.nan))
    for keep in (-0.1, 1.5, float("nan")):
        with refuses(f"keep is {keep}", "0 to 1"):
            duo.select_heads(gates, keep)


def test_wrong_patterns() -> None:
    model = nn.Sequential(*(MultiheadDiffAttn(64, i, 2) for i in range(2)))
    with refuses("pattern is torch.float32", "torch.bool", "select_heads"):
        duo.set_streaming_heads(model, torch.ones(2, 2), SINK, RECENT)
    with refuses("pattern is list", "torch.bool"):
        duo.set_streaming_heads(model, [[True]], SINK, RECENT)  # type: ignore[arg-type]
    with refuses("pattern is (2, 4)", "(2, 2)"):
        duo.set_streaming_heads(model, torch.ones(2, 4).bool(), SINK, RECENT)
    with refuses("recent is 0", "recent >= 1"):
        duo.set_streaming_heads(model, torch.ones(2, 2).bool(), SINK, 0)
    layer: Any = model[0]
    assert layer.window_size == (-1, -1) and layer.streaming_heads is None, "half set"


# Two lines of a published pattern, as numpy.savetxt writes bf16 gates; three are below 0.
PUBLISHED = """\
8.593750000000000000e-01\t6.523437500000000000e-01\t1.000000000000000000e+00\t-9.250640869140625000e-05
-2.229213714599609375e-05\t3.398437500000000000e-01\t8.242187500000000000e-01\t-2.145767211914062500e-05
"""
CONFIG = {"lr": 0.02, "sink_size": 128, "recent_size": 256, "deploy_sink_size": None}


def test_a_published_pattern(tmp_path: Path) -> None:
    (tmp_path / "full_attention_heads.tsv").write_text(PUBLISHED)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    gates, sink, recent = duo.load_pattern(tmp_path)
    expected = [[0.859375, 0.65234375, 1, 0], [0, 0.33984375, 0.82421875, 0]]
    assert gates.tolist() == expected and gates.dtype == torch.float32
    assert (sink, recent) == (128, 256)


def test_patterns_round_trip(tmp_path: Path) -> None:
    """Every bit of an fp32 gate; and numpy reads them, with which DuoAttention does."""
    numpy = pytest.importorskip("numpy")
    gates = torch.rand(5, 3).clamp(max=0.9)
    gates[0] = torch.tensor([1.0, 0.0, torch.finfo(torch.float32).tiny])
    folder = tmp_path / "new" / "folder"
    duo.save_pattern(str(folder), nn.Parameter(gates), 4, 64, lr=0.05)
    loaded, sink, recent = duo.load_pattern(folder)
    assert torch.equal(loaded, gates) and (sink, recent) == (4, 64)
    theirs = numpy.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t")
    assert theirs.tolist() == gates.double().tolist()
    assert json.loads((folder / "config.json").read_text()) == {
        "lr": 0.05, "sink_size": 4, "recent_size": 64,
    }  # fmt: skip
    duo.save_pattern(folder, duo.select_heads(gates), 4, 64)
    assert torch.equal(duo.load_pattern(folder)[0], duo.select_heads(gates).float())


def test_wrong_files(tmp_path: Path) -> None:
    tsv, config = tmp_path / "full_attention_heads.tsv", tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    with pytest.raises(FileNotFoundError, match="full_attention_heads.tsv"):
        duo.load_pattern(tmp_path)
    for text, line in (("1\t2\n3\n", "line 2 is '3'"), ("1\tx\n", r"line 1 is '1\\tx'"),
                       ("1\n\n2\n", "line 2 is ''")):  # fmt: skip
        tsv.write_text(text)
        with pytest.raises(ValueError, match=rf"heads\.tsv, {line}, accepted: numbers"):
            duo.load_pattern(tmp_path)
    for text in ("", "1\tnan\n"):
        tsv.write_text(text)
        with refuses("heads.tsv has no line, or a number that is not finite"):
            duo.load_pattern(tmp_path)
    tsv.write_text(PUBLISHED)
    for text in ("{", "[]", json.dumps({"sink_size": 1}), json.dumps(CONFIG | {"sink_size": "1"}),
                 json.dumps(CONFIG | {"recent_size": 0})):  # fmt: skip
        config.write_text(text)
        with refuses("config.json is wrong in", "sink_size and recent_size"):
            duo.load_pattern(tmp_path)
    config.unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        duo.load_pattern(tmp_path)
    with refuses("gates is (3,)", "(layers, nheads_k)"):
        duo.save_pattern(tmp_path / "new", torch.ones(3), 4, 64)
    with refuses("recent is 0"):
        duo.save_pattern(tmp_path / "new", torch.ones(3, 1), 4, 0)
    assert not (tmp_path / "new").exists()
