"""Gates that find streaming heads: what they mix, their gradients, and the finder without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import short
from support.impls import Impl
from support.refusal import refuses
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffattn_cuda import duo
from diffattn_cuda.nn import MultiheadDiffAttn, MultiheadDiffAttnV2, rotary_tables

EMBED, HEADS, SEQLEN, SINK, RECENT = 128, 4, 40, 3, 8  # V1: d = 16
MODELS = pytest.mark.parametrize("version", [1, 2])
KV_HEADS = pytest.mark.parametrize("kv_heads", [4, 2, 1])
MODES = pytest.mark.parametrize("mode", ["self", "teacher"])


class Stack(nn.Module):
    """Two residual layers with rotary embeddings, as a transformer has them."""

    def __init__(self, version: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        options: Any = {"num_kv_heads": kv_heads, "dtype": dtype}
        self.layers = nn.ModuleList(
            MultiheadDiffAttn(EMBED, depth, HEADS, **options)
            if version == 1
            else MultiheadDiffAttnV2(EMBED, HEADS, **options)
            for depth in range(2)
        )
        self.recompute = False

    def forward(self, x: Tensor, caches: list[Any] | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            tables = rotary_tables(64, 16, dtype=torch.float32)
            rel_pos = tuple(table.to(x.device, x.dtype) for table in tables)
            cache = None if caches is None else caches[i]
            if self.recompute:
                x = x + checkpoint(layer, x, rel_pos, use_reentrant=False)
            else:
                x = x + layer(x, rel_pos, cache)
        return x


def make(version: int = 1, kv_heads: int = 4, dtype: torch.dtype = torch.float64) -> Stack:
    model = Stack(version, kv_heads, dtype).requires_grad_(False)
    for layer in model.layers:  # type: ignore[union-attr]
        for weight in layer.parameters():  # type: ignore[union-attr]
            if weight.dim() == 2:
                weight.mul_(2)  # sharper maps: what streaming hides then matters
    return model


def some_input(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, SEQLEN, EMBED, dtype=dtype)


def gradient_and_difference(gates: duo.HeadGates, loss: Any) -> tuple[Tensor, Tensor]:
    """dL/dα from autograd, and from central differences."""
    loss().backward()
    assert gates.alpha.grad is not None
    measured = torch.zeros_like(gates.alpha)
    with torch.no_grad():
        for at in torch.cartesian_prod(*(torch.arange(n) for n in gates.alpha.shape)).tolist():
            sides = []
            for step in (1e-5, -2e-5):
                gates.alpha[tuple(at)] += step
                sides.append(loss())
            gates.alpha[tuple(at)] += 1e-5
            measured[tuple(at)] = (sides[0] - sides[1]) / 2e-5
    return gates.alpha.grad, measured


@MODELS
@KV_HEADS
@MODES
@pytest.mark.parametrize("kind", ["l2", "kl"])
def test_the_gradient_of_a_gate(version: int, kv_heads: int, mode: str, kind: str) -> None:
    model, x = make(version, kv_heads), some_input()
    gates = duo.HeadGates(model, SINK, RECENT, mode).double()
    mask = torch.rand(2, SEQLEN) < 0.5
    with torch.no_grad():
        gates.alpha.copy_(torch.rand(2, kv_heads) * 0.8 + 0.1)
    with gates.full():
        full = model(x)

    def loss() -> Tensor:
        # In fp64, which the package's loss is not.
        mixed = model(x)
        if kind == "l2":
            return (mixed - full)[mask].square().mean() + 0.05 * duo.penalty(gates.alpha)
        log_p, log_q = full.log_softmax(-1), mixed.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)[mask].mean()

    gradient, measured = gradient_and_difference(gates, loss)
    assert gradient.abs().min() > 1e-7, "a gate without a gradient proves nothing"
    torch.testing.assert_close(gradient, measured, rtol=1e-5, atol=1e-9)
    with torch.no_grad():
        mine = loss().item() - (0.05 * duo.penalty(gates.alpha).item() if kind == "l2" else 0)
        theirs = duo.distillation_loss(full, model(x), mask, kind).item()
    assert theirs == pytest.approx(mine, rel=1e-4)


@MODELS
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=short)
def test_gates_of_0_and_1_are_the_deployed_calls(
    impl: Impl, version: int, kv_heads: int, dtype: torch.dtype
) -> None:
    """Bit for bit: all, none, and a mix in which each layer and group differs."""
    model = make(version, kv_heads, dtype).to(impl.device)
    x = some_input(dtype).to(impl.device)
    mixed_pattern = torch.arange(2 * kv_heads).view(2, kv_heads) % 3 == 1
    results = []
    for pattern in (mixed_pattern, torch.ones_like(mixed_pattern), torch.zeros_like(mixed_pattern)):
        gates = duo.HeadGates(model, SINK, RECENT)
        with torch.no_grad():
            gates.alpha.copy_(pattern)
            mixed = model(x)
        gates.remove()
        duo.set_streaming_heads(model, pattern, SINK, RECENT)
        with torch.no_grad():
            results.append(model(x))
        assert torch.equal(mixed, results[-1])
    assert not torch.equal(results[1], results[2]) and not torch.equal(results[0], results[1])
    plain = make(version, kv_heads, dtype).to(impl.device)
    with torch.no_grad():
        assert torch.equal(plain(x), results[1])


@MODELS
def test_deployed_heads_see_the_same_with_a_cache(version: int) -> None:
    model, x = make(version, 2, torch.float32), some_input(torch.float32)
    duo.set_streaming_heads(model, torch.tensor([[True, False], [False, False]]), SINK, RECENT)
    layers: Any = model.layers
    caches = [layer.make_cache(2, SEQLEN) for layer in layers]
    with torch.no_grad():
        parts = [model(x[:, i : i + 5], caches) for i in range(0, SEQLEN, 5)]
        torch.testing.assert_close(torch.cat(parts, 1), model(x))


@MODES
def test_alpha_mixes_after_the_norm(mode: str) -> None:
    """Linear in α: half of it gives the middle of what 0 and 1 give."""
    model, x = make(1, 2).layers[0], some_input()
    gates = duo.HeadGates(model, SINK, RECENT, mode)
    with gates.full():
        model(x)
    results = []
    for alpha in (0.0, 0.5, 1.0):
        gates.alpha.data.fill_(alpha)
        results.append(model(x))
    torch.testing.assert_close(results[1], (results[0] + results[2]) / 2)


def test_what_a_teacher_teaches() -> None:
    """Its own Y, of its own input: with α = 1 nothing of the student's input is left."""
    layer, x, other = make(1, 2).layers[0], some_input(), some_input()
    for mode, taught in (("teacher", True), ("self", False)):
        gates = duo.HeadGates(layer, SINK, RECENT, mode)
        with gates.full():
            full = layer(other)
        assert torch.equal(layer(x), full) is taught
        gates.remove()


def test_the_teacher_is_the_model_without_gates() -> None:
    model, x = make(), some_input().requires_grad_()
    before = model(x)
    gates = duo.HeadGates(model, SINK, RECENT)
    with torch.no_grad():
        gates.alpha.zero_()
    with gates.full():
        full = model(x)
    assert torch.equal(full, before) and not full.requires_grad
    assert not torch.equal(model(x), before) and model(x).requires_grad
    gates.remove()
    assert torch.equal(model(x), before)
    duo.HeadGates(model, SINK, RECENT).remove()  # again: nothing was left behind


def test_the_teacher_ends_with_its_block_whatever_happens() -> None:
    model, x = make(), some_input()
    gates = duo.HeadGates(model, SINK, RECENT)
    gates.alpha.data.zero_()
    mixed = model(x)
    with pytest.raises(KeyError), gates.full():
        raise KeyError
    assert torch.equal(model(x), mixed)


def test_only_gates_belong_to_it() -> None:
    """Not the model, which would be saved and optimised with them."""
    gates = duo.HeadGates(make(kv_heads=2, dtype=torch.bfloat16), SINK, RECENT)
    assert [(n, p.shape, p.dtype) for n, p in gates.named_parameters()] == [
        ("alpha", (2, 2), torch.float32)
    ]
    assert list(gates.state_dict()) == ["alpha"] and (gates.alpha == 1).all()


def test_small_differences_of_gates_count_in_bf16() -> None:
    """The mix is computed in fp32: in bf16 gates from ½ to 1 would be multiples of 1/256."""
    layer, x = make(dtype=torch.bfloat16).layers[0], some_input(torch.bfloat16)
    gates = duo.HeadGates(layer, SINK, RECENT)
    gates.alpha.data.fill_(0.9)
    one = layer(x)
    gates.alpha.data.sub_(1e-3)  # both are 0.8984 in bf16
    assert one.dtype == torch.bfloat16 and not torch.equal(one, layer(x))
    layer(x).float().sum().backward()
    assert gates.alpha.grad is not None and gates.alpha.grad.dtype == torch.float32


@MODES
def test_recomputed_activations_have_the_same_gradient(mode: str) -> None:
    """A backward that calls the layers again still finds their gates."""
    gradients = []
    for recompute in (False, True):
        model = make()
        model.recompute = recompute
        torch.manual_seed(1)
        x = some_input().requires_grad_()
        gates = duo.HeadGates(model, SINK, RECENT, mode)
        gates.alpha.data.fill_(0.7)
        with gates.full():
            full = model(x)
        duo.distillation_loss(full, model(x), torch.ones(2, SEQLEN, dtype=torch.bool)).backward()
        gradients.append(gates.alpha.grad)
    assert torch.equal(*gradients) and gradients[0].any()


def test_compiled_whole() -> None:
    model, x = make(dtype=torch.float32), some_input(torch.float32)
    gates = duo.HeadGates(model, SINK, RECENT)
    gates.alpha.data.fill_(0.25)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_training_keeps_the_head_that_is_needed() -> None:
    """Head 1 of layer 0 reads values that are always 0: nothing needs it, and its gate falls."""
    model, x = make(), some_input()
    layer: Any = model.layers[0]
    layer.v_proj.weight.data[32:64] = 0  # 2d rows per head
    gates = duo.HeadGates(model, SINK, RECENT)
    optimizer = torch.optim.Adam(gates.parameters(), 0.05)
    with gates.full():
        full = model(x)
    for _ in range(40):
        loss = duo.distillation_loss(full, model(x), torch.ones(2, SEQLEN, dtype=torch.bool))
        (50 * loss + duo.penalty(gates.alpha)).backward()
        optimizer.step()
        optimizer.zero_grad()
        gates.alpha.data[0, 0] = 3.0  # outside, where it would have no gradient
        gates.clamp_()
    assert gates.alpha[0, 1] == 0 and gates.alpha[0, 0] == 1
    assert (gates.alpha[0, 2:] > 0.5).all()


def test_wrong_gates() -> None:
    model, x = make(kv_heads=2), some_input()
    with refuses("model is Linear", "MultiheadDiffAttn"):
        duo.HeadGates(nn.Linear(2, 2), SINK, RECENT)
    with refuses("model has layers of [2, 4] KV heads", "one number"):
        duo.HeadGates(nn.ModuleList([make(kv_heads=2), make(kv_heads=4)]), SINK, RECENT)
    with refuses("causal=False", "accepted: causal"):
        duo.HeadGates(MultiheadDiffAttn(EMBED, 0, HEADS, causal=False), SINK, RECENT)
    with refuses("mode is 'both'", "'self' or 'teacher'"):
        duo.HeadGates(model, SINK, RECENT, "both")
    for sink, recent in ((-1, 8), (0, 0)):
        with refuses(f"sink is {sink} and recent is {recent}", "recent >= 1"):
            duo.HeadGates(model, sink, recent)
    with refuses("recent is 8.0", "integer"):
        duo.HeadGates(model, SINK, 8.0)  # type: ignore[arg-type]
    gates = duo.HeadGates(model, SINK, RECENT, "teacher")
    for act in (
        lambda: duo.HeadGates(model, SINK, RECENT),
        lambda: duo.attention_scores(model, x, SINK, RECENT),
        lambda: duo.set_streaming_heads(model, torch.ones(2, 2).bool(), SINK, RECENT),
    ):
        with refuses("model has gates already", "remove()"):
            act()
    with refuses("mode is 'teacher'", "full() first"):
        model(x)
    with gates.full():
        model(x)
    with refuses("mode is 'teacher'", "full() first"):
        model(x[:, :-1])
    layers: Any = model.layers
    caches = [layer.make_cache(2, SEQLEN) for layer in layers]
    with refuses("cache was given to a layer with gates", "remove()"), torch.no_grad():
        model(x, caches)
    assert not caches[0].seqlens.any() and not caches[0].k.any()


def test_losses() -> None:
    full, mixed = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    wrong = mixed.masked_fill(~mask[..., None], torch.nan)  # what does not count may be anything
    assert duo.distillation_loss(full, wrong, mask).item() == pytest.approx(
        sum((full - mixed)[b, t].square().mean().item() for b, t in mask.nonzero()) / 3
    )
    p, q = full.softmax(-1), mixed.softmax(-1)
    assert duo.distillation_loss(full, wrong, mask, "kl").item() == pytest.approx(
        sum((p * (p / q).log()).sum(-1)[b, t].item() for b, t in mask.nonzero()) / 3, rel=1e-5
    )
    assert duo.distillation_loss(full.half(), mixed.half(), mask).dtype == torch.float32
    assert duo.penalty(torch.tensor([[1.0, -0.5]])).item() == 0.75
    with refuses("mixed is (2, 3, 4)", "(2, 3, 5)"):
        duo.distillation_loss(full, mixed[..., :4], mask)
    with refuses("kind is 'mse'", "'l2' or 'kl'"):
        duo.distillation_loss(full, mixed, mask, "mse")
    for bad in (mask[:1], mask.int(), torch.zeros_like(mask)):
        with refuses("mask is", "accepted: torch.bool (2, 3)", "at least once"):
            duo.distillation_loss(full, mixed, bad)


def scores_by_hand(layer: Any, x: Tensor, rows: Tensor) -> list[float]:
    """Of a layer without rotary embeddings, one row, head and key at a time."""
    heads, kv, d = layer.num_heads, layer.num_kv_heads, layer.head_dim
    q = (x @ layer.q_proj.weight.T).view(2, SEQLEN, heads, 2, d)
    k = (x @ layer.k_proj.weight.T).view(2, SEQLEN, kv, -1, d).expand(2, SEQLEN, kv, 2, d)
    shares: list[list[float]] = [[] for _ in range(kv)]
    for b, i in rows.nonzero().tolist():
        for h in range(heads):
            if isinstance(layer, MultiheadDiffAttnV2):
                lam = (x[b, i] @ layer.lambda_proj.weight[h]).sigmoid()
            else:
                lam = layer.lambda_full()
            s = torch.einsum("cd,jcd->cj", q[b, i, h], k[b, : i + 1, h // (heads // kv)]) / d**0.5
            p1, p2 = s.softmax(-1)
            weight = (p1 - lam * p2).abs().tolist()
            far = sum(w for j, w in enumerate(weight) if SINK <= j <= i - RECENT)
            shares[h // (heads // kv)].append(far / sum(weight))
    return [sum(share) / len(share) for share in shares]


@MODELS
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_scores(version: int, kv_heads: int) -> None:
    layer: Any = make(version, kv_heads).layers[1]
    x, rows = some_input(), torch.rand(2, SEQLEN) < 0.3
    scores = duo.attention_scores(layer, x, SINK, RECENT, rows)
    assert scores[0].tolist() == pytest.approx(scores_by_hand(layer, x, rows), rel=1e-5)
    late = torch.arange(SEQLEN).expand(2, SEQLEN) >= SINK + RECENT
    assert torch.equal(duo.attention_scores(layer, x, SINK, RECENT),
                       duo.attention_scores(layer, x, SINK, RECENT, late))  # fmt: skip
    assert layer.attention_override is None
    assert not duo.attention_scores(layer, x, SINK, SEQLEN, rows).any()
    for hidden_from_none in (
        lambda: duo.attention_scores(layer, x, SINK, SEQLEN),
        lambda: duo.attention_scores(layer, x, SINK, RECENT, rows & False),
    ):
        with refuses("no row of batch counts", "accepted"):  # fmt: skip
            hidden_from_none()
        assert layer.attention_override is None, "a probe was left behind"
