"""Whether what a hostile call did is acceptable: a right answer, or an error that helps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import hostile_run
import torch
from hostile_calls import Arguments, Call, is_healthy
from hostile_changes import spoil
from hostile_targets import MODULES, legal_call
from hostile_tensors import CACHES, RINGS
from torch import Tensor

from diffattn_cuda import groups

ERRORS = (ValueError, TypeError, RuntimeError, NotImplementedError, MemoryError)
LONGEST_LINE = 300
KEYS, VALUES = ("k", "k_cache", "k_stream"), ("v", "v_cache", "v_stream")
# Errors that need not name an argument, because none is at fault or they are not ours to word.
NAMELESS = [
    r"missing|unexpected keyword|positional argument",  # Python's own
    r"vmap|double backward|forward-mode|functorch|torch\.func",  # a transform is refused
    r"[Ii]nference tensor",  # and so is autograd of these, by torch
]
MEMORY = r"bad_alloc|can't allocate memory|bytes of working memory|Storage size calculation"
# Torch's, of a kind of tensor that raw ops do not have; of nested ones the rest.
DISPATCHER = (
    r"Could not run 'diffattn::|^\w+\.\w+\.default$|"
    r"NestedTensorImpl doesn't support|Cannot access storage of \w+Impl|setStorage: sizes \[\]"
)


@dataclass
class Verdict:
    """`kind` is "right", "refused", or what is wrong; `detail` is for a person."""

    kind: str
    detail: str = ""

    @property
    def bad(self) -> bool:
        return self.kind not in ("right", "refused")


def make(seed: int, index: int) -> Call:
    call = legal_call(seed, index)
    spoil(call, [*hostile_run.CONTEXTS])
    for what, needs in {"sin": "cos", "v_cache": "k_cache", "seqlens": "k_cache"}.items():
        if call.target in MODULES and call.args.get(needs) is None:
            call.must_refuse.pop(what, None)  # the module never gets it
    call.legal &= call.context in hostile_run.HARMLESS
    call.comparable &= call.context != "autocast"
    transformed = call.context in ("jvp", "dual", "grad", "vmap")  # of a backward there is none
    call.comparable &= not (call.target == "raw bwd" and transformed)
    of_a_part = call.target in ("raw bwd_partial", "part")
    call.comparable &= not (of_a_part and (transformed or call.context == "backward"))
    return call


def judge(call: Call) -> Verdict:
    before = _snapshot(call)
    given = {name: _copy(arg) for name, arg in call.args.items()}
    caches = [name for name in (*CACHES, *RINGS) if name in call.args]
    versions = [_version(call.args[name]) for name in caches]
    try:
        answer = hostile_run.ours(call)
    except Exception as error:
        return _judge_error(call, error, _changed(call, before, []))
    if call.must_refuse:
        return Verdict("accepted", ", ".join(call.must_refuse.values()))
    writes = call.args.get("k", call.args.get("x")) is not None
    allowed = [*caches, "seqlens"] if writes else []
    if touched := _changed(call, before, allowed):
        return Verdict("wrote to an input", f"{touched}")
    if call.target == "kvcache" and call.context == "plain" and _appends(call):
        if any(_version(call.args[n]) == v for n, v in zip(caches, versions, strict=True)):
            return Verdict("hid a write from autograd", "the caches' versions are as before")
    return _judge_answer(call, answer, given)


def _judge_error(call: Call, error: Exception, touched: list[str]) -> Verdict:
    message = str(error)
    detail = f"{type(error).__name__}: {message}"[:400]
    first = message.strip().splitlines()[0] if message.strip() else ""
    if touched:
        return Verdict("changed an input and raised", f"{touched}: {detail}")
    if type(error) not in ERRORS or "INTERNAL ASSERT" in message:
        return Verdict("wrong type of error", detail)
    if call.legal:
        return Verdict("refused a legal call", detail)
    if re.search(MEMORY, message):
        return Verdict("copied before it checked" if call.misshapen else "refused", detail)
    excused = [*NAMELESS, DISPATCHER] if call.target.startswith("raw") else NAMELESS
    if any(re.search(pattern, message) for pattern in excused):
        return Verdict("refused", detail)
    if not first or len(first) > LONGEST_LINE:
        return Verdict("error of no use", detail)
    names = [*call.args, *RINGS, "page_size", "rotary_dim", "lam"]
    if call.target in MODULES:
        names += ["x", "rel_pos", "cache", "cache_seqlens", "rotary_cos", "rotary_sin", *CACHES]
    named = any(re.search(rf"\b{re.escape(name)}\b", message) for name in names)
    return Verdict("refused" if named else "named no argument", detail)


def _appends(call: Call) -> bool:
    k = call.args.get("k")
    return isinstance(k, Tensor) and k.numel() > 0


def _version(arg: Any) -> int:
    return arg._version if isinstance(arg, Tensor) and not arg.is_inference() else -1


def _memory(t: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def _snapshot(call: Call) -> dict[str, Tensor]:
    """The bytes behind each argument."""
    return {name: _memory(call.args[name]).clone() for name in call.tensors()}


def _changed(call: Call, before: dict[str, Tensor], allowed: list[str]) -> list[str]:
    writable = {_place(call.args[n]) for n in allowed if n in before}
    return [
        name
        for name, old in before.items()
        if _place(call.args[name]) not in writable
        and not torch.equal(_memory(call.args[name]), old)
    ]


def _place(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _copy(arg: Any) -> Any:
    return arg.clone() if isinstance(arg, Tensor) and is_healthy(arg) else arg


def _judge_answer(call: Call, answer: hostile_run.Answer, given: Arguments) -> Verdict:
    tensors = [arg for arg in given.values() if isinstance(arg, Tensor)]
    known = call.comparable and all(is_healthy(t) and not t.is_complex() for t in tensors)
    # A cache of no heads may have more slots than torch can count the bytes of in fp64.
    known &= all(size < 2**40 for t in tensors for size in t.shape)
    if not known:
        return Verdict("right", "not compared")
    exact = _converted(given, torch.float64)
    try:
        want = hostile_run.expected(call, exact)
    except Exception as error:
        return Verdict("accepted", f"the reference: {type(error).__name__}: {error}"[:300])
    for name, expected in want.items():
        got = answer.get(name)
        if expected is None:
            continue
        if got is None:
            return Verdict("wrong", f"{name} is missing")
        if got.shape != expected.shape:
            return Verdict("wrong", f"{name} is {tuple(got.shape)}, not {tuple(expected.shape)}")
        if got.device.type != "cpu":
            return Verdict("wrong", f"{name} is on {got.device}")
        if name in ("out", "lse") and call.target not in MODULES:
            complaint = _far(call, name, got, expected, given)
        else:
            complaint = _far_as_a_whole(call, name, got, expected, given)
        if complaint:
            return Verdict("wrong", complaint)
    return Verdict("right")


def _converted(args: Arguments, dtype: torch.dtype) -> Arguments:
    """For the reference: another dtype, and windows of raw ops, which 2^62 does not unbound."""
    args = {
        name: arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else _copy(arg)
        for name, arg in args.items()
    }
    for name in {"window_left", "window_right"} & set(args):
        args[name] = _clamped(args[name])
    return args


def _clamped(side: Any) -> Any:
    return max(-1, min(side, 2**40)) if isinstance(side, int) else side


def _far_as_a_whole(call: Call, name: str, got: Tensor, want: Tensor, given: Arguments) -> str:
    """Relative L2; derivatives of few rows have no better bound that is simple."""
    own = name.removeprefix("d")  # a gradient is rounded as its argument is
    inputs = {arg.dtype for n in ("q", "x", own) if isinstance(arg := given.get(n), Tensor)}
    coarse = bool(inputs & {torch.float16, torch.bfloat16})
    if not call.tame or not want.isfinite().all():
        return ""
    error = (got.double() - want).norm().item()
    bound = (0.1 if coarse else 1e-3) * want.norm().item() + (1e-2 if coarse else 1e-4)
    if given.get("dout") is not None and name in ("dq", "dk", "dlam"):
        bound += _of_cancelled_gradients(name, given)
    return "" if error <= bound else f"{name} is off by {error:.3g}, accepted {bound:.3g}"


def _of_cancelled_gradients(name: str, given: Arguments) -> float:
    """What rounding leaves of gradients whose terms cancel.

    A row that sees one key has dP = D, so its scores have no gradient. Under a norm dO is
    orthogonal to O, so that ⟨dO, O2⟩, λ's gradient, may vanish.
    """
    a = _converted(given, torch.float64)
    dout = a["dout"] * a.get("out_scale", 1.0)
    if a.get("norm_weight") is not None:
        dout = dout * a["norm_weight"]
    size, unit = _lengths(dout), torch.finfo(given["q"].dtype).eps
    normed = a.get("norm_eps") is not None
    if normed:
        o, o2 = _out_and_noise(a)
        size = size / (o.square().mean(-1) + a["norm_eps"]).sqrt()
    if name == "dlam":
        return 4 * unit * (size * _lengths(o2)).norm().item() if normed else 0.0
    scale = a.get("softmax_scale")
    scale = max(a["q"].shape[-1], 1) ** -0.5 if scale is None else abs(scale)
    each = size * scale * _largest([_lengths(a["v"])]) * (1 + _largest([torch.as_tensor(a["lam"])]))
    if name == "dq":
        return 4 * unit * each.norm().item() * _largest([_lengths(a["k"])])
    return 4 * unit * each.sum().item() * _largest([_lengths(a["q"])])


def _out_and_noise(a: Arguments) -> tuple[Tensor, Tensor]:
    """O1 − λ·O2 and O2, of each signal head."""
    if "window_left" in a:  # a raw op, which is given no components
        plain = a | {"norm_eps": None, "norm_weight": None, "out_scale": 1.0}
        signal, less = (hostile_run.raw_fwd(**plain | {"lam": a["lam"] * 0 + x})[0] for x in (0, 1))
        o2 = signal - less
    else:
        signal, o2 = groups.as_pairs(a["o"]).unbind(-2)
    lam = torch.as_tensor(a["lam"])
    if lam.dim() and lam.shape[-1] < o2.shape[-2]:  # one for each group of maps
        lam = lam.repeat_interleave(o2.shape[-2] // lam.shape[-1], -1)
    return signal - lam.expand(o2.shape[:-1])[..., None] * o2, o2


def _far(call: Call, name: str, got: Tensor, want: Tensor, given: Arguments) -> str:
    """Elements that fp32 can get right, and that are not: rounded scores move all else."""
    double = given["q"].dtype == torch.float64
    bound = _bound(call, name, want, given)
    sound = want.isfinite() & want.to(got.dtype).isfinite() & bound.isfinite()
    if not double:
        single = hostile_run.expected(call, _converted(given, torch.float32))[name]
        assert single is not None
        sound &= (single.double() - want).abs() <= bound
    wrong = sound & ~((got.double() - want).abs() <= bound)
    if name == "out" and _sums_overflow(given):
        wrong &= got.isfinite()
    if name == "lse":
        wrong |= _sees_no_key(call, given, want) & (got != -math.inf) & bound.isfinite()
    if not wrong.any():
        return ""
    where = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {want.numel()} elements of {name} wrong, first {where}: "
        f"{got[where].item():.6g}, expected {want[where].item():.6g}"
    )


def _sums_overflow(given: Arguments) -> bool:
    """Whether inf or NaN is right for V's weighted sum, as docs/numerics.md has it; no number is.

    Decoding divides it by the softmax's sum at the end: until then keys weigh up to 1 each.
    """
    keys, caches = 1, [given[name] for name in CACHES if name in given]
    if caches:
        lengths, table = given.get("cache_seqlens"), given.get("block_table")
        keys = caches[1].shape[1] * (1 if table is None else table.shape[1])
        if lengths is not None:
            new = 0 if given.get("k") is None else given["k"].shape[1]
            keys = min(keys, int(torch.as_tensor(lengths).max()) + new)
    values = _largest([given[n] for n in VALUES if given.get(n) is not None])
    lam = _largest([torch.as_tensor(given.get("lam", 0.0))])
    compute = torch.promote_types(given["q"].dtype, torch.float32)
    return values * keys * (1 + lam) > torch.finfo(compute).max


def _sees_no_key(call: Call, given: Arguments, want: Tensor) -> Tensor:
    """Rows whose LSE is -inf whatever the scores, and not because all of them are."""
    if not (want == -math.inf).any():
        return torch.zeros_like(want, dtype=torch.bool)
    a = _converted(given, torch.float64)
    zeros = {n: torch.zeros_like(a[n]) for n in ("q", *KEYS) if a.get(n) is not None}
    lse = hostile_run.expected(call, a | zeros)["lse"]
    assert lse is not None
    return lse == -math.inf


def _bound(call: Call, name: str, want: Tensor, given: Arguments) -> Tensor:
    """How far rounding may carry an element: the scores' error, times what V and λ weigh."""
    a = _converted(given, torch.float64)
    d = a["q"].shape[-1]
    scale = a.get("softmax_scale")
    scale = max(d, 1) ** -0.5 if scale is None else abs(scale)
    keys = [a[n] for n in KEYS if a.get(n) is not None]
    values = [a[n] for n in VALUES if a.get(n) is not None]
    score = scale * _largest([_lengths(a["q"])]) * _largest([_lengths(k) for k in keys])
    if a.get("rotary_cos") is not None:
        cos, sin = _largest([a["rotary_cos"]]), _largest([a["rotary_sin"]])
        score *= max(1.0, cos * cos + sin * sin)
        rotated = _largest([a["q"], *keys]) * (cos + sin)
        if rotated > torch.finfo(given["q"].dtype).max:
            return torch.full_like(want, math.inf)  # q and k are rounded once they are rotated
    double = given["q"].dtype == torch.float64
    unit = torch.finfo(torch.float64 if double else torch.float32).eps
    relative = 32 * unit * (8 + score)
    if a.get("rotary_cos") is not None:  # q and k are rounded once they are rotated
        relative += 4 * torch.finfo(given["q"].dtype).eps * score
    most = torch.finfo(torch.float64 if double else torch.float32).max / 16
    total = _largest(values)
    factor = float(abs(a.get("out_scale", 1.0)))
    if a.get("norm_weight") is not None:
        factor *= _largest([a["norm_weight"]])
    normed = a.get("norm_eps") is not None
    endless = any(bool(v.isinf().any()) for v in values)  # O1 - λ·O2 may be inf - inf, then the row
    if score > most or (normed and (endless or max(total * total, factor) > most)):
        return torch.full_like(want, math.inf)  # nor do sums, squares and products fit
    if name == "lse":
        return relative + 1e-7 + want.abs().nan_to_num(posinf=0.0) * 8 * unit
    lam = torch.as_tensor(a.get("lam", 0.0))
    total *= 1 + _largest([lam])
    rounding = want.abs() * 4 * torch.finfo(given["q"].dtype).eps + 1e-7
    pairs = _of_rounded_pairs(call, a, given["q"].dtype)
    if not normed:
        return rounding + (min(2.0, relative) * total + pairs) * factor
    plain = _plain_out(call, a)
    rms = (plain.square().mean(-1, keepdim=True) + a["norm_eps"]).sqrt()
    amplified = (relative * total / rms).nan_to_num(2.0).clamp(max=2.0)
    turned = (pairs + plain.abs() * pairs.square().mean(-1, keepdim=True).sqrt() / rms) / rms
    return rounding + (amplified * math.sqrt(want.shape[-1]) + turned) * factor


def _of_rounded_pairs(call: Call, a: Arguments, dtype: torch.dtype) -> Tensor:
    """Where bf16 is multiplied as such, P1 − λ·P2 of each key is rounded to it once."""
    if dtype != torch.bfloat16:
        return torch.zeros(())
    size = {n: a[n].abs() for n in VALUES if a.get(n) is not None}
    if "lam" in a:
        lam = a["lam"]
        size["lam"] = -lam.abs() if isinstance(lam, Tensor) else -abs(float(lam))
    return torch.finfo(dtype).eps * _plain_out(call, a | size)


def _plain_out(call: Call, a: Arguments) -> Tensor:
    """Neither normalized nor scaled."""
    plain = {"norm_eps": None, "norm_weight": None, "out_scale": 1.0}
    plain = {name: value for name, value in plain.items() if name in a}
    out = hostile_run.expected(call, a | plain)["out"]
    assert out is not None
    return out


def _lengths(x: Tensor) -> Tensor:
    """Of its rows; those that are not finite reach nothing that is compared."""
    limits = torch.finfo(torch.float64)
    largest = x.double().abs().amax(-1, keepdim=True)
    shape = torch.linalg.vector_norm(x.double() / largest.clamp(min=limits.tiny), dim=-1)
    length = largest.squeeze(-1) * shape  # so that no square overflows
    return torch.where(largest.squeeze(-1).isfinite(), length.clamp(max=limits.max), length)


def _largest(tensors: list[Tensor]) -> float:
    finite = [t.double()[t.double().isfinite()].abs() for t in tensors]
    return max((x.max().item() for x in finite if x.numel()), default=0.0)
