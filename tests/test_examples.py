"""Every example runs, and the demo's model writes the same with its KV cache as without."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.case import short
from support.impls import Impl

Capture = pytest.CaptureFixture[str]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """python examples/x.py puts examples/ first on the path; so does this.

    One thread: at these sizes a second one waits more than it works, far more on a busy machine.
    """
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name, says",
    [
        ("basic", r"out \(2, 256, 4, 128\)"),
        ("varlen", r"rows 445 to 446: alone the same"),
        ("paged_decode", r"42 tokens, 2 sequences"),
        ("unilm_v1", r"layer 2: λ = 0\.\d+, fused and unilm's formula agree"),
        ("diff_v2", r"90 tokens at once and 6 from the cache agree"),
        ("hf_diffllama", r"generate: the same 60 tokens.*\n.*42 gradients agree"),
    ],
)
def test_short_example(name: str, says: str, capsys: Capture) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(says, capsys.readouterr().out)


def test_training_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(
        sys, "argv", ["train_lm.py", "--tiny", "--steps", "8", "--out", str(tmp_path)]
    )
    runpy.run_path(str(EXAMPLES / "train_lm.py"), run_name="__main__")
    said = capsys.readouterr().out
    first, last = map(float, re.findall(r"loss (\S+) → (\S+) nats", said)[0])
    assert last < first - 0.5
    fused, eager = map(float, re.findall(r"(?:fused|eager) .* loss (\S+)", said))
    assert fused == pytest.approx(eager, abs=1e-4)
    assert "def read_file(path):" in said and "tokens/s in generation" in said
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert (tmp_path / "attention.png").stat().st_size > 5000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=short)
def test_greedy_tokens_are_the_same_with_and_without_the_cache(
    impl: Impl, dtype: torch.dtype
) -> None:
    from diff_lm import DiffLM

    """In bf16 a CPU may round P with a prompt and not in a step: two tokens can then be as good."""
    model = DiffLM(dim=128, depth=3, heads=4, kv_heads=2, max_seqlen=48).to(impl.device, dtype)
    prompt = torch.randint(256, (2, 9), device=impl.device)
    with torch.no_grad():
        tokens = model.generate(prompt, 30)
        logits = model(tokens[:, :-1])[:, 8:]  # (2, 30, 256)
    best, chosen = logits.amax(-1), logits.gather(-1, tokens[:, 9:, None])[..., 0]
    spacing = torch.finfo(dtype).eps * best.abs() if dtype == torch.bfloat16 else 0
    assert (best - chosen <= spacing).all()
