"""Legal calls of functions, modules and raw ops, for hostile.py to spoil."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffattn_cuda import arguments, groups, nn
from diffattn_cuda.ring import Ring, round_up

Arguments = dict[str, Any]
DTYPES = [torch.float32] * 3 + [torch.float64, torch.float16, torch.bfloat16]


@dataclass
class Call:
    """A call, what was done to it, and what is known about the answer."""

    target: str  # a key of hostile_targets.LEGAL
    args: Arguments
    rng: random.Random
    context: str = "plain"  # a key of hostile_run.CONTEXTS
    changes: list[str] = field(default_factory=list)
    legal: bool = True  # no change took that away, so an error is wrong
    must_refuse: dict[str, str] = field(default_factory=dict)  # an argument, why a result is wrong
    misshapen: bool = False  # hugely: asking for memory is wrong too
    comparable: bool = True  # the reference means the same by it
    tame: bool = True  # of ordinary numbers, so that gradients can be compared

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator(self.rng))

    def tensor(self, name: str) -> Tensor | None:
        """That argument if it is a tensor that can be read and changed without harm."""
        arg = self.args.get(name)
        return arg if isinstance(arg, Tensor) and is_healthy(arg) else None

    def tensors(self) -> list[str]:
        return [name for name in self.args if self.tensor(name) is not None]

    def __str__(self) -> str:
        given = ", ".join(f"{name}={_short(arg)}" for name, arg in self.args.items())
        return f"{self.target} {self.changes} {self.context}: {given}"


def is_healthy(t: Tensor) -> bool:
    """Strided, small, in host memory, its storage there: torch itself crashes on some others."""
    plain = t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized
    if not plain or t.is_nested or t.numel() > 2**20:
        return False
    return t.numel() == 0 or t.data_ptr() != 0


def _short(arg: Any) -> str:
    if not isinstance(arg, Tensor):
        return repr(arg)[:60]
    if arg.is_nested:
        return "nested"
    where = "" if arg.device.type == "cpu" else f" {arg.device}"
    return f"{str(arg.dtype)[6:]}{tuple(arg.shape)}{where}"


def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(rng.getrandbits(32))


@dataclass
class Sizes:
    batch: int
    seqlen_q: int
    seqlen_k: int
    groups: int  # of maps
    signals: int  # to one noise map
    nheads_k: int
    components: int
    d: int
    dv: int
    dtype: torch.dtype

    @property
    def nheads(self) -> int:
        return self.groups * self.signals

    @property
    def compute(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)


def _sizes(rng: random.Random) -> Sizes:
    longest = 150 if rng.random() < 0.1 else 20  # few calls need several blocks of keys
    nheads_k, d = rng.choice([1, 1, 2]), rng.choice([8, 8, 16, 24, 64])
    return Sizes(
        batch=rng.choice([1, 2, 3]),
        seqlen_q=rng.randint(1, longest),
        seqlen_k=rng.randint(1, longest),
        groups=nheads_k * rng.choice([1, 2, 3]),
        signals=rng.choice([1, 1, 1, 2, 4]),
        nheads_k=nheads_k,
        components=rng.choice([1, 2, 2]),
        d=d,
        dv=d * rng.choice([1, 2, 2]),
        dtype=rng.choice(DTYPES),
    )


def _options(call: Call, s: Sizes) -> Arguments:
    """What all three functions take by the same names."""
    rng = call.rng
    options: Arguments = {
        "softmax_scale": rng.choice([None, None, 0.3, -0.1]),
        "causal": rng.random() < 0.4,
        "window_size": rng.choice([(-1, -1), (-1, -1), (3, 0), (0, 5), (-1, 2)]),
        "norm_weight": None,
        "norm_eps": None,
        "out_scale": rng.choice([1.0, 0.2, -1.5]),
        "return_lse": rng.random() < 0.6,
        "softcap": rng.choice([0.0, 0.0, 0.5, 30.0]),
    }
    if rng.random() < 0.4:
        options["norm_eps"] = 1e-5
        if rng.random() < 0.7:
            options["norm_weight"] = call.randn(s.dv)
    if rng.random() < 0.3:
        options |= {"causal": True, "window_size": (rng.choice([0, 3, 15, 40]), 0)}
        options["sink_size"] = rng.choice([0, 1, 5, 17])
        if rng.random() < 0.7:
            options["streaming_heads"] = [rng.random() < 0.5 for _ in range(s.nheads_k)]
    return options


def _lam(call: Call, s: Sizes, rows: tuple[int, ...]) -> Any:
    shape = call.rng.choice([None, (), (s.nheads,), (*rows, s.nheads), (*rows, s.groups)])
    return 0.6 if shape is None else call.randn(*shape).to(s.compute)


def _heads(call: Call, x: Tensor) -> Tensor:
    """(.., heads, maps, d) as it is or, of pairs, with its heads flattened: both are accepted."""
    return x if x.shape[-2] > 2 or call.rng.random() < 0.3 else x.flatten(-3, -2)


def _values(call: Call, s: Sizes, *keys: int) -> Tensor:
    """V as it is or, where a public function takes it, as two halves that lie apart."""
    v = call.randn(*keys, s.nheads_k, s.dv).to(s.dtype)
    public = call.target in ("dense", "packed", "kvcache")
    if not public or s.dv == s.d or call.rng.random() < 0.8:
        return v
    return v.unflatten(-1, (2, -1)).transpose(-3, -2).contiguous().transpose(-3, -2)


def _qkv(call: Call, s: Sizes, rows: tuple[int, ...], keys: tuple[int, ...]) -> Arguments:
    return {
        "q": _heads(call, call.randn(*rows, s.groups, s.signals + 1, s.d).to(s.dtype)),
        "k": _heads(call, call.randn(*keys, s.nheads_k, s.components, s.d).to(s.dtype)),
        "v": _values(call, s, *keys),
        "lam": _lam(call, s, rows),
    }


def dense(call: Call) -> Arguments:
    s = _sizes(call.rng)
    qkv = _qkv(call, s, (s.batch, s.seqlen_q), (s.batch, s.seqlen_k))
    return qkv | _options(call, s) | {"deterministic": call.rng.random() < 0.5}


def packed(call: Call) -> Arguments:
    s, rng = _sizes(call.rng), call.rng
    lengths_q = [rng.randint(0, s.seqlen_q) for _ in range(s.batch)]
    lengths_k = [rng.randint(0, s.seqlen_k) for _ in range(s.batch)]
    qkv = _qkv(call, s, (sum(lengths_q),), (sum(lengths_k),))
    return qkv | {
        "cu_seqlens_q": starts(lengths_q),
        "cu_seqlens_k": starts(lengths_k),
        "max_seqlen_q": max(lengths_q),
        "max_seqlen_k": max(lengths_k) + rng.choice([0, 3]),
        **_options(call, s),
        "deterministic": rng.random() < 0.5,
    }


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def kvcache(call: Call) -> Arguments:
    s, rng = _sizes(call.rng), call.rng
    kind = rng.choice(["plain", "plain", "indexed", "paged"])
    new = rng.choice([s.seqlen_q, 1, rng.randint(0, 20)]) if rng.random() < 0.7 else None
    page, capacity = 16, rng.choice([32, 160]) if (new or 0) <= 32 else 160
    lengths = [rng.randint(0, capacity - (new or 0)) for _ in range(s.batch)]
    slots = capacity if kind != "paged" else page
    table = torch.randperm(s.batch * capacity // slots + 1, generator=generator(rng))
    rows = s.batch if kind == "plain" else len(table)
    args = call.args = _qkv(call, s, (s.batch, s.seqlen_q), (rows, slots))
    args["k_cache"], args["v_cache"] = args.pop("k"), args.pop("v")
    if new is not None:
        args["k"] = call.randn(s.batch, new, *args["k_cache"].shape[2:]).to(s.dtype)
        args["v"] = _values(call, s, s.batch, new)
    args["cache_seqlens"] = int32(lengths)
    if rng.random() < 0.2:
        args["cache_seqlens"] = min(lengths)
    elif new is None and rng.random() < 0.2:
        args["cache_seqlens"] = None
    if rng.random() < 0.3:
        args["cache_leftpad"] = int32([rng.randint(0, min(lengths)) for _ in lengths])
    if kind == "indexed":
        args["cache_batch_idx"] = table[: s.batch].int()
    if kind == "paged":
        args["block_table"] = table[:-1].view(s.batch, -1).int()
    if new is not None and s.d >= 16 and rng.random() < 0.7:
        positions = max(lengths) + max(new, s.seqlen_q) + rng.choice([0, 0, 3])
        angle = call.randn(positions, 8 * rng.randint(1, s.d // 16))
        args["rotary_cos"], args["rotary_sin"] = angle.cos().to(s.dtype), angle.sin().to(s.dtype)
        args["rotary_interleaved"] = rng.random() < 0.5
    args |= _options(call, s) | {"num_splits": rng.choice([0, 0, 1, 2, 7])}
    if "sink_size" in args and args["cache_seqlens"] is not None and rng.random() < 0.6:
        _move_to_a_ring(call, s, new or 0)
    return args


def _move_to_a_ring(call: Call, s: Sizes, new: int) -> None:
    """The heads that stream, if any do; the others stay where they are."""
    args, rng = call.args, call.rng
    streams = args.get("streaming_heads") or [True] * s.nheads_k
    full, streaming = (
        [h for h in range(s.nheads_k) if streams[h] == kind] for kind in (False, True)
    )
    if not streaming or ("block_table" in args and not full):
        return
    ring = Ring.of_step(args["sink_size"], args["window_size"][0] + 1, rng.choice([1, s.seqlen_q]))
    slots = ring.slots + round_up(max(s.seqlen_q - new, 0))
    rows = s.batch if "block_table" in args else args["v_cache"].shape[0]
    args["k_stream"] = call.randn(rows, slots, len(streaming), s.components, s.d).to(s.dtype)
    args["v_stream"] = call.randn(rows, slots, len(streaming), s.dv).to(s.dtype)
    flat = args["k_cache"].dim() == 4
    if flat:
        args["k_stream"] = args["k_stream"].flatten(2, 3)
    heads = [h * s.components + c for h in full for c in range(s.components)] if flat else full
    args["k_cache"] = args["k_cache"][:, :, heads].contiguous()
    args["v_cache"] = args["v_cache"][:, :, full].contiguous()


def module(call: Call) -> Arguments:
    """A module's constructor and its forward in one; hostile_run makes the module."""
    rng = call.rng
    heads, dtype = rng.choice([1, 2]), rng.choice(DTYPES)
    d = rng.choice([8, 16])
    batch, seqlen, capacity = rng.choice([1, 2]), rng.randint(1, 20), 32
    width = heads * d * (2 if call.target == "v1" else 1)
    args: Arguments = {
        "x": call.randn(batch, seqlen, width).to(dtype),
        "embed_dim": width,
        "num_heads": heads,
        "num_kv_heads": rng.choice([None, 1]),
        "signal_per_noise": rng.choice([1, 1, heads]),
        "window_size": rng.choice([(-1, -1), (5, 0)]),
        "dtype": dtype,
    }
    if call.target == "v1":
        args |= {"depth": rng.randint(0, 9), "norm_affine": rng.random() < 0.5}
    if rng.random() < 0.5:
        args["cos"], args["sin"] = nn.rotary_tables(capacity, d // 16 * 16, dtype=dtype)
        if d < 16:
            del args["cos"], args["sin"]
    if rng.random() < 0.5:
        components = 2 if call.target == "v1" else 1
        slots = batch, capacity, args["num_kv_heads"] or heads // args["signal_per_noise"]
        args["k_cache"] = call.randn(*slots[:2], slots[2] * components, d).to(dtype)
        args["v_cache"] = call.randn(*slots, components * d).to(dtype)
        args["seqlens"] = int32([rng.randint(0, capacity - seqlen) for _ in range(batch)])
    return args


def raw_fwd(call: Call) -> Arguments:
    """The op's own arguments, from those of a public function."""
    args = packed(call) if call.rng.random() < 0.4 else dense(call)
    args.setdefault("cu_seqlens_q", None)
    args.setdefault("cu_seqlens_k", None)
    args.setdefault("max_seqlen_q", 0)
    args.setdefault("max_seqlen_k", 0)
    nheads_k = args["v"].shape[-2]
    args["q"] = _unflattened(args["q"], args["v"].dim() + 1, 2)
    args["k"] = _unflattened(args["k"], args["v"].dim() + 1, args["k"].shape[-2] // nheads_k)
    return _raw(args) | {"training": call.rng.random() < 0.5}


def raw_bwd(call: Call) -> Arguments:
    args = raw_fwd(call) | {"training": True}
    out, lse, o, o2, rstd = torch.ops.diffattn.fwd(**args)
    del args["training"]
    dlse = call.randn(*lse.shape).to(lse.dtype) if call.rng.random() < 0.5 else None
    saved = {"o": o, "o2": o2, "lse": lse, "rstd": rstd}
    return {"dout": call.randn(*out.shape).to(out.dtype), "dlse": dlse} | args | saved


def raw_decode(call: Call) -> Arguments:
    args = kvcache(call)
    seqlens, keys, values = args["cache_seqlens"], args["k_cache"], args["v_cache"]
    if "k_stream" in args and not values.shape[2]:
        keys, values = args["k_stream"], args["v_stream"]
    components = 2 if keys.dim() == 5 else keys.shape[2] // values.shape[2]
    args["q"] = _unflattened(args["q"], 5, 2)
    for name in ("k_cache", "k", "k_stream"):
        if name in args:
            args[name] = _unflattened(args[name], 5, components)
    if isinstance(seqlens, int):
        args["cache_seqlens"] = int32([seqlens] * args["q"].shape[0])
    optional = ("k", "v", "rotary_cos", "rotary_sin", "cache_leftpad", "cache_batch_idx")
    for name in (*optional, "block_table"):
        args.setdefault(name, None)
    args.setdefault("rotary_interleaved", True)
    return _raw(args)


def _unflattened(x: Tensor, dims: int, components: int) -> Tensor:
    return x if x.dim() == dims else x.unflatten(-2, (x.shape[-2] // components, components))


def _raw(args: Arguments) -> Arguments:
    q, lam = args["q"], args["lam"]
    compute = torch.promote_types(q.dtype, torch.float32)
    lam = torch.as_tensor(lam, dtype=compute)
    if lam.shape == q.shape[:-2]:  # one for each group
        lam = lam.repeat_interleave(groups.signals_of(q), -1)
    args["lam"] = lam.expand(groups.heads_of(q))
    if args["norm_weight"] is not None:
        args["norm_weight"] = args["norm_weight"].to(compute)
    args["softmax_scale"] = args["softmax_scale"] or 0.2
    left, right = args.pop("window_size")
    args["window_left"], args["window_right"] = left, 0 if args.pop("causal") else right
    args.setdefault("sink_size", 0)
    streams = args.get("streaming_heads")
    bits = arguments.ALL_STREAM if streams is None else sum(s << h for h, s in enumerate(streams))
    args["streaming_heads"] = bits
    del args["return_lse"]
    return args
