"""Which KV heads may stream, found by gates: DuoAttention (arXiv 2410.10819) on differential heads.

    Y = (1 − α)·Y_stream + α·Y_full

Y_full is a head's result with the whole context, Y_stream that with sinks and a window, both after
the headwise norm: an RMSNorm behind the mix would hide its scale, and α = 0 and 1 are the calls
that are deployed.  With the model frozen, α of heads that need the whole context stays near 1 and
the others fall.  One α per KV head stands for K1, K2 and V, and with GQA for the whole group.

`Passkeys` is what the gates learn from; `select_heads` and `set_streaming_heads` deploy them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import groups, reference
from .gated_layers import Override, attend, differential_layers, refuse_gates, streaming_mask
from .head_patterns import load_pattern, save_pattern, select_heads, set_streaming_heads
from .passkeys import Passkeys

__all__ = [
    "HeadGates",
    "Passkeys",
    "attention_scores",
    "distillation_loss",
    "load_pattern",
    "penalty",
    "save_pattern",
    "select_heads",
    "set_streaming_heads",
]

_MODES, _KINDS = ("self", "teacher"), ("l2", "kl")
_FULL: dict[str, Any] = {"window_size": (-1, -1), "sink_size": 0, "streaming_heads": None}


class HeadGates(nn.Module):
    """A gate α per KV head of every differential layer; from then on the model's forward mixes.

    The teacher is the model within `full()`.  Freeze the model, take the `distillation_loss` of
    its two results plus the `penalty` of α, step, and call `clamp_()`.

    Args:
        model: holds causal `nn.MultiheadDiffAttn` or `nn.MultiheadDiffAttnV2`, all with one number
            of KV heads. Their own window_size, sink_size and streaming_heads are not used.
        sink: keys at the start that a streaming head sees.
        recent: keys up to its own that it sees, window_size's left + 1.
        mode: what Y_full is computed from. "self": the q, k and v of Y_stream. "teacher"
            (DuoAttention's): it is the teacher's Y, so that `full()` has to come first; its
            backward is cheaper, and earlier gates learn through the streaming heads only.

    Attributes:
        alpha: fp32 parameter (layers, nheads_k), 1 at first; its values count from 0 to 1.

    Raises:
        ValueError: a model without such layers or with gates already, or another mode.

    Examples:
        >>> from diffattn_cuda.nn import MultiheadDiffAttn
        >>> model = MultiheadDiffAttn(256, depth=0, num_heads=2).requires_grad_(False)
        >>> gates, x = HeadGates(model, sink=4, recent=8), torch.randn(1, 50, 256)
        >>> with gates.full():
        ...     y_full = model(x)
        >>> loss = distillation_loss(y_full, model(x), torch.ones(1, 50, dtype=torch.bool))
        >>> (loss + 0.05 * penalty(gates.alpha)).backward()
        >>> gates.alpha.grad.shape
        torch.Size([1, 2])
        >>> gates.remove()
    """

    def __init__(self, model: nn.Module, sink: int, recent: int, mode: str = "self") -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode is {mode!r}, accepted: {' or '.join(map(repr, _MODES))}")
        self.mode = mode
        self._stream = streaming_mask(sink, recent) | {"streaming_heads": None}
        self._layers, nheads_k = differential_layers(model)
        refuse_gates(self._layers)
        self._taught: list[Tensor | None] = [None] * len(self._layers)
        device = self._layers[0].k_proj.weight.device
        self.alpha = nn.Parameter(torch.ones(len(self._layers), nheads_k, device=device))
        self._override(self._mix)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Within it the model is the teacher: every head sees the whole context, no gradients."""
        self._override(self._teach)
        try:
            with torch.no_grad():
                yield
        finally:
            self._override(self._mix)

    @torch.no_grad()
    def clamp_(self) -> None:
        """α into [0, 1]; after each step, because a gate outside has no gradient."""
        self.alpha.clamp_(0, 1)

    def remove(self) -> None:
        """The model as it was."""
        self._taught = [None] * len(self._layers)
        for layer in self._layers:
            layer.attention_override = None

    def _override(self, function: Callable[..., Tensor]) -> None:
        for i, layer in enumerate(self._layers):
            layer.attention_override = Override(partial(function, i))

    def _teach(self, i: int, *tensors: Any, **options: Any) -> Tensor:
        y_full = attend(self._layers[i], tensors, options | _FULL)
        if self.mode == "teacher":
            self._taught[i] = y_full
        return y_full

    def _mix(self, i: int, *tensors: Any, **options: Any) -> Tensor:
        layer = self._layers[i]
        y_stream = attend(layer, tensors, options | self._stream)
        y_full = self._taught[i]
        if self.mode == "self":
            y_full = attend(layer, tensors, options | _FULL)
        elif y_full is None or y_full.shape != y_stream.shape:
            raise RuntimeError(
                "mode is 'teacher': call the model on this input within full() first"
            )
        assert y_full is not None
        acc = torch.promote_types(y_stream.dtype, torch.float32)
        alpha = self.alpha[i].clamp(0, 1).to(y_stream.device, acc)
        alpha = alpha.repeat_interleave(layer.num_heads // layer.num_kv_heads)[:, None]  # (h, 1)
        return torch.lerp(y_stream.to(acc), y_full.to(acc), alpha).to(y_stream.dtype)


def distillation_loss(full: Tensor, mixed: Tensor, mask: Tensor, kind: str = "l2") -> Tensor:
    """How far the gated model is from its teacher, per token of the mask; 0-d, fp32.

    Args:
        full: (batch, seqlen, dim), the teacher's.
        mixed: the gated model's.
        mask: bool (batch, seqlen): the tokens that count, such as those which predict an answer.
        kind: "l2": mean squared difference of hidden states (DuoAttention's loss). "kl": full and
            mixed are logits, and this is KL(softmax(full) ‖ softmax(mixed)).

    Raises:
        ValueError: shapes differ, a mask that is False everywhere, or another kind.

    Examples:
        >>> full, mask = torch.zeros(1, 3, 2), torch.tensor([[False, True, False]])
        >>> mixed = full + torch.tensor([[[9.0], [2.0], [9.0]]])
        >>> distillation_loss(full, mixed, mask), distillation_loss(full, mixed, mask, "kl")
        (tensor(4.), tensor(0.))
    """
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}, accepted: {' or '.join(map(repr, _KINDS))}")
    if full.shape != mixed.shape:
        raise ValueError(f"mixed is {tuple(mixed.shape)}, accepted: full's {tuple(full.shape)}")
    if mask.dtype != torch.bool or mask.shape != full.shape[:-1] or not mask.any():
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}, True {int(mask.sum())} times; accepted: "
            f"torch.bool {tuple(full.shape[:-1])}, True at least once"
        )
    full, mixed = full[mask].float(), mixed[mask].float()  # (tokens, dim)
    if kind == "l2":
        return (mixed - full).square().mean()
    return F.kl_div(mixed.log_softmax(-1), full.softmax(-1), reduction="batchmean")


def penalty(gates: Tensor) -> Tensor:
    """Mean |α|: what makes gates fall that nothing needs. DuoAttention weighs it by 0.05.

    Examples:
        >>> penalty(torch.tensor([[1.0, 0.5], [0.0, 0.5]]))
        tensor(0.5000)
    """
    return gates.abs().mean()


@torch.no_grad()
def attention_scores(
    model: nn.Module, batch: Any, sink: int, recent: int, rows: Tensor | None = None
) -> Tensor:
    """How much of its attention a head puts on keys that streaming hides: no training needed.

    The share of the row's Σ|P1 − λ·P2| that lies outside sinks and window, averaged over the rows
    and the heads of a group. The maps are computed as a whole: memory grows with seqlen².

    Args:
        model: as in `HeadGates`, without gates.
        batch: what the model is called with.
        sink: as in `HeadGates`.
        recent: as in `HeadGates`.
        rows: bool (batch, seqlen): the rows that count, such as those which predict an answer.
            None: all from sink + recent on, from which something is hidden.

    Returns:
        fp32 (layers, nheads_k), 0 to 1, on the CPU.

    Raises:
        ValueError: no row counts.

    Examples:
        >>> from diffattn_cuda.nn import MultiheadDiffAttn
        >>> model = MultiheadDiffAttn(256, depth=0, num_heads=2)
        >>> attention_scores(model, torch.randn(1, 50, 256), sink=4, recent=8).shape
        torch.Size([1, 2])
    """
    layers, nheads_k = differential_layers(model)
    mask = streaming_mask(sink, recent)
    scores = torch.zeros(len(layers), nheads_k)

    def probe(i: int, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, **options: Any) -> Tensor:
        group, seqlen = q.shape[2] // k.shape[2], q.shape[1]
        k_of_rows, cap = k.repeat_interleave(group, dim=2), options["softcap"]
        p, _ = reference.attention_maps(q, k_of_rows, causal=True, softcap=cap)
        of_rows = groups.lambda_per_row(lam, p.dtype, q.shape[2], groups.signals_of(q))
        signals, noise = p[:-1].movedim(0, 2), p[-1][:, :, None]  # (b, groups, r | 1, sq, sk)
        total = (signals - of_rows * noise).flatten(1, 2).abs()  # (b, h, sq, sk)
        seen = reference.visible_keys(seqlen, seqlen, True, device=q.device, **mask)
        hidden = total.masked_fill(seen, 0).sum(-1) / total.sum(-1).clamp_min(1e-30)  # (b, h, sq)
        counts = torch.arange(seqlen, device=q.device) >= sink + recent if rows is None else rows
        hidden = hidden.transpose(1, 2)[counts.expand(len(q), seqlen)]  # (rows, h)
        if not len(hidden):
            raise ValueError(f"no row of batch counts, accepted: over {sink + recent} tokens, rows")
        scores[i] = hidden.mean(0).unflatten(0, (nheads_k, -1)).mean(1)
        return attend(layers[i], (q, k, v, lam), options | _FULL)

    refuse_gates(layers)
    try:
        for i, layer in enumerate(layers):
            layer.attention_override = Override(partial(probe, i))
        model(batch)
    finally:
        for layer in layers:
            layer.attention_override = None
    return scores
