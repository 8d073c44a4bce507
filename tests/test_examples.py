"""Every example runs, and the demo's model writes the same with its KV cache as without."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.case import short
from support.impls import Impl
from torch import Tensor, nn

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
        ("motif2", r"4 groups of 4 signals and a noise: .* agree"),
        ("variants", r"DINT: .* 4 gradients agree.*\nDGSA: .* 4 gradients agree"),
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


def test_duo_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from diffattn_cuda import duo

    monkeypatch.setattr(sys, "argv", ["duo_lm.py", "--tiny", "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "duo_lm.py"), run_name="__main__")
    said = capsys.readouterr().out
    losses = dict(re.findall(r"^\| ([^|]+?) \| .* \| (\S+) \(", said, re.MULTILINE))
    assert len(losses) == 10 and "learned 1/2" in losses
    assert 1 < float(losses["full"]) < 5.5 and losses["full"] != losses["all streaming"]
    alpha, sink, recent = duo.load_pattern(tmp_path)
    assert alpha.shape == (2, 4) and (0 < alpha).all() and (alpha < 1).any()
    assert (sink, recent) == (16, 64)
    assert (tmp_path / "duo_gates.svg").stat().st_size > 5000
    assert (tmp_path / "duo_cache.svg").stat().st_size > 5000


def test_answers_that_are_right() -> None:
    from duo_lm import exact_matches
    from passkey_lm import exact_match

    from diffattn_cuda.duo import Passkeys

    tokens, labels, _ = Passkeys(b"some text " * 50, 3, 300).batch(6)

    class Reader:
        """It looks up the key that is asked for; on some prompts it misreads the last symbol."""

        def __init__(self, wrong: int) -> None:
            self.wrong = wrong

        def attention_layers(self) -> list[Any]:
            return []

        def generate(self, prompt: Tensor, count: int, caches: list[Any]) -> Tensor:
            said = []
            for i, row in enumerate(prompt):
                text = bytes(row.tolist())
                key = text[text.index(text[-17:]) + 17 :][:count]
                said.append(list(key[:-1] + b"!" if i < self.wrong else key))
            return torch.cat([prompt, torch.tensor(said)], dim=1)

        def __call__(self, read: Tensor) -> Tensor:
            """Certain of each next token, on some rows but for the last symbol of an answer."""
            logits = nn.functional.one_hot(tokens[:, 1:], 256).float()
            logits[: self.wrong, -2] = nn.functional.one_hot(torch.tensor(33), 256).float()
            return logits[: len(read)]

    for wrong in (0, 2, 6):
        reader: Any = Reader(wrong)
        assert exact_matches(reader, tokens) == pytest.approx(1 - wrong / 6)
        right = exact_match(reader, tokens, labels)
        assert right.shape == (6, 3) and right[:, :2].all()
        assert right[:, 2].tolist() == [False] * wrong + [True] * (6 - wrong)


def test_noise_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "argv", ["noise.py", "--tiny", "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "noise.py"), run_name="__main__")
    said = capsys.readouterr().out
    sizes = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) parameters", said)]
    assert len(sizes) == 2 and max(sizes) < 1.001 * min(sizes)
    for row in ("| P1 − λ·P2 | after |", "| ordinary | 4 |", "| DIFF | 4 |", "| rounded | 1 key,"):
        assert row in said
    assert (tmp_path / "noise.svg").stat().st_size > 20000


@pytest.mark.parametrize("kind", ["ordinary", "DIFF"])
def test_probes_of_the_noise_demo(kind: str) -> None:
    """They compute what the layer does, round as asked, and are gone afterwards."""
    from noise import build, remove_probe, set_probe

    model, tokens = build(kind, depth=2), torch.randint(256, (2, 60))
    with torch.no_grad():
        expected = model(tokens)
        apart = {}
        for bits in (None, 12, 4):
            set_probe(model, bits)
            apart[bits] = (model(tokens) - expected).abs().max().item()
        remove_probe(model)
        assert torch.equal(model(tokens), expected)
    assert apart[None] < 1e-4 and 10 * apart[12] < apart[4]


@pytest.mark.parametrize("bits", [4, 3])
def test_rounded_logits_have_as_many_levels(bits: int) -> None:
    from noise import Probe

    q, k = torch.randn(2, 1, 300, 2, 16)
    logits = (
        Probe(bits)._softmax(q, k)[0, :, -1].log()
    )  # of the row that sees all keys, up to a sum
    for head in logits:
        levels = (head - head.max()).mul(1e3).round().unique()
        assert 2 ** (bits - 2) < len(levels) <= 2**bits - 1


@pytest.mark.parametrize("kind", ["ordinary", "DIFF"])
def test_attention_mass(kind: str) -> None:
    """Against a search for the lines in the text, one symbol at a time."""
    from noise import attention_mass, build, prompts, set_probe

    model = build(kind, depth=2)
    for block in model.blocks:
        block.attn.q_proj.weight.data.mul_(9)  # maps so sharp that their difference changes sign
    rows = prompts(b"some text " * 50, 2, 3, 200, seed=0)
    masses = attention_mass(model, rows)
    probes = set_probe(model)
    with torch.no_grad():
        model(rows[0])
    for name, mass in masses.items():
        answers, noises = [], []
        weights = probes[mass.layer].maps[name]
        for b, row in enumerate(rows[0]):
            text = bytes(row.tolist())
            for asked in re.finditer(rb"\nthe key of (.) is (.{8})\n", text[-52:]):
                declared = text.index(asked[0])
                for number in range(8):
                    place = len(text) - 52 + asked.start(2) + number - 1
                    w = weights[b, mass.head, place].clone()
                    answers.append(w[declared + 17 + number].item())
                    w[declared : declared + 26] = 0
                    w[len(text) - 52 + asked.start() : place + 1] = 0
                    noises.append(w.abs().sum().item())
        assert len(answers) == 48
        assert mass.answer == pytest.approx(sum(answers) / 48, rel=1e-4)
        assert mass.noise == pytest.approx(sum(noises) / 48, rel=1e-4)


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
