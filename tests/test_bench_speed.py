"""bench/speed.py on this CPU: recipes of every peer, clocks, sweeps, and a whole small run.

No machine of ours has a GPU. Stand-ins of the libraries prove that each recipe is differential
attention, and a stand-in of torch.cuda proves what the GPU's clock counts; not that they run there.
"""

from __future__ import annotations

import csv
import sys
import types
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bench import problem_of
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diffattn_cuda import _cpu

if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="tomli is not installed")
ROOT = Path(__file__).resolve().parent.parent


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return out.transpose(1, 2)


def stand_in(same_width: bool, gives_lse: bool = False) -> types.ModuleType:
    """flash-attn's two functions in PyTorch, with its limits."""
    module = types.ModuleType("stand_in")

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Any:
        assert all(t.stride(-1) == 1 for t in (q, k, v))
        if same_width and v.shape[-1] != q.shape[-1]:
            raise RuntimeError("value must have the same head dimension as query")
        out = attend(q, k, v, causal)
        return (out, torch.empty(0)) if gives_lse else out

    def flash_attn_with_kvcache(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: int, causal: bool = False
    ) -> Any:
        assert not torch.is_grad_enabled() or not q.requires_grad
        keys = slice(0, cache_seqlens)
        return flash_attn_func(q, k_cache[:, keys], v_cache[:, keys], causal and q.shape[1] > 1)

    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    return module


class Ragged:
    """FlashInfer's wrapper for batches of sequences without padding."""

    def __init__(self, workspace: Tensor, layout: str) -> None:
        assert layout == "NHD" and workspace.dtype == torch.uint8

    def plan(self, qo: Tensor, kv: Tensor, nheads: int, nheads_k: int, d: int, **more: Any) -> None:
        self.starts, self.heads, self.causal = (qo, kv), (nheads, nheads_k, d), more["causal"]
        assert more["q_data_type"] == torch.float32 and qo.dtype == kv.dtype == torch.int32

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nheads, nheads_k, d = self.heads
        assert q.shape[1:] == (nheads, d) and k.shape == v.shape and k.shape[1:] == (nheads_k, d)
        qs, ks = (list(zip(s[:-1].tolist(), s[1:].tolist(), strict=True)) for s in self.starts)
        assert (qs[-1][1], ks[-1][1]) == (len(q), len(k))
        outs = [
            attend(q[None, i:j], k[None, m:n], v[None, m:n], self.causal)[0]
            for (i, j), (m, n) in zip(qs, ks, strict=True)
        ]
        return torch.cat(outs)


class Paged:
    """FlashInfer's wrapper for a step of decoding over pages."""

    def __init__(self, workspace: Tensor, layout: str) -> None:
        assert layout == "NHD"

    def plan(
        self, indptr: Tensor, indices: Tensor, last: Tensor, nheads: int, nheads_k: int, d: int,
        page: int, **more: Any,
    ) -> None:  # fmt: skip
        assert more["q_data_type"] == more["kv_data_type"] == torch.float32
        assert set(last.tolist()) == {page}  # full caches
        self.pages = [indices[i:j].long() for i, j in zip(indptr[:-1], indptr[1:], strict=True)]

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        rows = []
        for i, pages in enumerate(self.pages):
            k, v = (t[pages].flatten(0, 1)[None] for t in cache)
            rows.append(attend(q[None, i : i + 1], k, v, causal=False)[0])
        return torch.cat(rows)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    four = stand_in(same_width=False, gives_lse=True)
    del four.flash_attn_with_kvcache
    infer = types.ModuleType("flashinfer")
    infer.BatchPrefillWithRaggedKVCacheWrapper = Ragged  # type: ignore[attr-defined]
    infer.BatchDecodeWithPagedKVCacheWrapper = Paged  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", infer)
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in(same_width=True))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", four)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", stand_in(False, gives_lse=True))
    monkeypatch.setitem(sys.modules, "flex_head_fa", stand_in(same_width=False))


@pytest.mark.parametrize("direction", ["fwd", "bwd", "fwdbwd", "decode"])
def test_every_recipe_is_differential_attention(
    bench: Any, libraries: None, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FlexAttention would compile for seconds, and these heads are pairs.
    everything = bench.peers.PEERS.keys() - {"flex2", "pairs"}
    if direction in ("bwd", "fwdbwd"):
        everything -= {"flashinfer_4"}
    asked = []
    monkeypatch.setattr(bench.peers, "sdpa_kernel", lambda b: asked.append(b) or nullcontext())
    peers = {name: bench.peers.PEERS[name] for name in sorted(everything)}
    x = bench.problem.make_inputs(problem_of(bench, direction))
    assert bench.speed.right(peers, x) == sorted(everything)
    assert set(asked) == set(bench.peers.BACKENDS.values())
    bench.libraries._prefill_plan.cache_clear()


def test_a_backend_that_cannot_is_left_out(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """No CPU has cuDNN's."""
    x = bench.problem.make_inputs(problem_of(bench, "fwd"))
    peers = {"sdpa4_cudnn": bench.peers.PEERS["sdpa4_cudnn"]}
    assert bench.speed.right(peers, x) == []
    assert "sdpa4_cudnn is left out: RuntimeError" in capsys.readouterr().out


def test_a_wrong_peer_is_left_out(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    x = bench.problem.make_inputs(problem_of(bench, "fwd"))
    peers = bench.peers.PEERS
    wrong = {
        "sdpa2": lambda x: peers["sdpa2"](replace(x, lam=x.lam * 1.01)),
        "sdpa4": lambda x: peers["sdpa4"](replace(x, v=x.v.flip(3))),
        "sdpa_hf": peers["sdpa4"],  # DiffLlama's order of heads read as unilm's
        "fa2_4": peers["fa2_4"],  # which is not installed
    }
    assert bench.speed.right(wrong, x) == []
    said = capsys.readouterr().out
    assert "sdpa2 is left out: out is off by" in said
    assert "fa2_4 is left out: ModuleNotFoundError" in said


def test_what_does_not_fit_into_memory_is_left_out(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long sequences are checked at a shorter length; there may be too little memory for all."""
    monkeypatch.setattr(bench.speed, "CHECKED", 16)
    lengths = []

    def hungry(x: Any) -> Tensor:
        lengths.append(x.problem.seqlen_k)
        if x.problem.seqlen_k > 16:
            raise torch.OutOfMemoryError("out of memory")
        return bench.peers.sdpa2(x)

    peers = {"hungry": hungry, "sdpa4": bench.peers.sdpa4}
    assert list(bench.speed.calls(peers, problem_of(bench, "fwd"))) == ["sdpa4"]
    assert lengths == [16, 48] and "hungry is left out: too little" in capsys.readouterr().out


def test_only_installed_libraries_are_peers(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = "flex_head_fa"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == found)
    names = list(bench.peers.peers_for("fwd", "cuda"))
    assert names[0] == "ours" and names[-2:] == ["flexhead_2", "flexhead_4"]
    assert {"sdpa2_cudnn", "sdpa4_flash", "sdpa4_efficient"} < set(names)
    assert "fa2_4" not in names and "flexhead_2" not in bench.peers.peers_for("fwd", "cpu")


class FakeGpu:
    """torch.cuda with a clock that only the work moves; its cache is dirty after each call."""

    def __init__(self) -> None:
        self.now = 0.0
        self.synchronized = False

    def current_device(self) -> str:
        return "cpu"

    def get_device_properties(self, device: str) -> Any:
        return types.SimpleNamespace(L2_cache_size=1000)

    def synchronize(self) -> None:
        self.synchronized = True

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = types.SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.now)

        def elapsed_time(end: Any) -> float:
            assert self.synchronized, "the GPU has not reached the events yet"
            return end.at - event.at

        event.elapsed_time = elapsed_time
        return event


def test_the_gpus_clock_counts_calls_with_a_cold_cache(bench: Any) -> None:
    gpu = FakeGpu()
    clock = bench.clocks.CudaClock(gpu)
    took = iter([3.0, 5.0])

    def run() -> None:
        assert clock._flood.count_nonzero() == 0 and clock._flood.numel() == 2000
        clock._flood.fill_(1)
        gpu.now += next(took)  # milliseconds

    gpu.now += 100.0
    assert clock.seconds(run, repeats=2) == pytest.approx(4e-3)


def test_limits_and_ours_are_medians_of_the_same_rounds(bench: Any) -> None:
    """A machine that reads twice as fast in one round of five must not raise the yardstick."""
    p = problem_of(bench, "decode")
    read = bench.clocks.Samples([1.0, 1.0, 0.5, 1.0, 1.0])
    ours = bench.clocks.Samples([2.0, 2.0, 2.0, 1.0, 2.0])
    limits = {"torch.mm": 1e9, "read": p.cache_bytes / read.median}
    assert bench.speed.row(p, "ours", ours, ours, limits).bandwidth_percent == pytest.approx(50)
    assert bench.speed.row(p, "read", read, ours, limits).bandwidth_percent == pytest.approx(100)
    assert bench.speed.row(p, "read", read, ours, limits).ours_speedup is None


def test_interleaving_counts_rounds_and_repeats(bench: Any) -> None:
    """A fake clock: short calls are repeated, long ones take part in fewer rounds."""
    calls: dict[str, int] = {"short": 0, "long": 0}
    cost = {"short": 0.001, "long": 2.0}

    class Fake:
        def seconds(self, run: Any, repeats: int = 1) -> float:
            name = run()
            calls[name] += repeats
            return cost[name]

    runs = {name: (lambda name=name: name) for name in cost}
    samples = bench.clocks.interleave(runs, rounds=11, budget=8.0, clock=Fake())
    assert len(samples["short"].seconds) == 11 and len(samples["long"].seconds) == 4
    assert calls["short"] == 1 + 11 * 20 and samples["long"].median == 2.0


def test_sweeps_of_a_file_and_of_the_command_line(bench: Any, tmp_path: Path) -> None:
    config = tmp_path / "sweeps.toml"
    config.write_text("""
        [[sweep]]
        direction = ["fwd", "decode"]
        seqlens = [64, 128]
        tokens = 256
        mask = ["causal", "full"]
        cpu_time = true
        memory = false
        [[sweep]]
        nheads_k = [1, 2]
        headdim = 32
    """)
    first, second = bench.sweep.sweeps("", ["--config", str(config), "--nheads", "2"])
    assert first.cpu_time and not first.memory and second.dtype == ["fp32"]
    found = [(p.direction, p.seqlen_q, p.seqlen_k, p.batch, p.causal)
             for p in bench.sweep.problems(first)]  # fmt: skip
    assert found == [
        ("fwd", 64, 64, 4, True), ("fwd", 128, 128, 2, True),
        ("fwd", 64, 64, 4, False), ("fwd", 128, 128, 2, False),
        *2 * [("decode", 1, 64, 4, False), ("decode", 1, 128, 2, False)],
    ]  # fmt: skip
    assert {(p.nheads, p.nheads_k, p.headdim) for p in bench.sweep.problems(second)} == {
        (2, 1, 32), (2, 2, 32)}  # fmt: skip
    config.write_text("[[sweep]]\nseqlen = [64]\ncolour = 3\n")
    with pytest.raises(SystemExit):
        bench.sweep.sweeps("", ["--config", str(config)])


def test_no_problem_begins_late(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock that a problem moves by 40 s: of three, a minute has room for two."""
    now = [0.0]
    monkeypatch.setattr(bench.speed.time, "monotonic", lambda: now[0])

    def slow(*_: Any) -> list[Any]:
        now[0] += 40
        return []

    monkeypatch.setattr(bench.speed, "time_problem", slow)
    bench.speed.main(["--seqlens", "32", "64", "128", "--minutes", "1"])
    said = capsys.readouterr().out
    assert "Sq64" in said and said.count("is not reached: 1 minutes are over") == 1


def test_the_gpus_sweeps_are_problems(bench: Any) -> None:
    command = ["--config", str(ROOT / "tools" / "gpu_day" / "speed.toml"), "--device", "cuda"]
    asked = [p for args in bench.sweep.sweeps("", command) for p in bench.sweep.problems(args)]
    assert all(p.device == "cuda" for p in asked)
    assert {p.batch * p.seqlen_q for p in asked if p.direction != "decode"} == {16384}
    causal = {(p.direction, p.headdim, p.seqlen_q) for p in asked if p.causal}
    assert causal == set(product(("fwd", "bwd", "fwdbwd"), (64, 128), (2048, 4096, 16384)))
    megabytes = {(p.headdim, p.batch, p.cache_bytes >> 20) for p in asked if p.seqlen_q == 1}
    groups_of_maps = {(128, 8, 512)}
    assert megabytes == set(product([64], [1, 32], (16, 64, 256))) | groups_of_maps | {
        (128, 1, m) for m in (16, 64, 256)
    }


def test_a_whole_run(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("MM_SIZE", {"cpu": 32}), ("READ_BYTES", 2**16), ("SAMPLE_SECONDS", 1e-4)):
        monkeypatch.setattr(bench.clocks, name, size)
    out = tmp_path / "speed.csv"
    options = ["--seqlens", "32", "--rounds", "3", "--peers", "sdpa2", "sdpa_hf", "--csv", str(out)]
    bench.speed.main(["--direction", "fwd", "bwd", "fwdbwd", "decode", *options])
    said = capsys.readouterr().out
    assert "is left out" not in said and "% bw" in said
    lines = list(csv.DictReader(out.open()))
    peers = [line["peer"] for line in lines if line["direction"] == "decode"]
    assert peers == ["ours", "sdpa2", "sdpa_hf", "torch.mm", "read"]
    assert lines[0]["command"].startswith("python bench/speed.py --direction fwd bwd fwdbwd decode")
    assert all(float(line["bandwidth_percent"]) == pytest.approx(100)
               for line in lines if line["peer"] == "read")  # fmt: skip
    assert all(line["ours_speedup"] for line in lines if line["peer"].startswith("sdpa"))

    assert {line["our_isa"] for line in lines} == {_cpu.isa()}
    assert f"our CPU kernels use {_cpu.isa()}" in said

    import plot

    rows, place = plot.read_speed([out])
    plot.draw_speed(rows, place, tmp_path / "speed.svg")
    assert "--rounds 3" in place["command"] and (tmp_path / "speed.svg").stat().st_size > 5000
