"""The modules' errors: each names the argument, what it was, and what is accepted."""

from typing import Any

import pytest
import torch
from test_nn import EMBED, F64, HEADS, make, tables
from torch import Tensor

from diffattn_cuda.nn import MultiheadDiffAttn, MultiheadDiffAttnV2, rotary_tables


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"embed_dim is 100; .* 2·num_heads = 6"):
        MultiheadDiffAttn(100, 0, 3)
    with pytest.raises(ValueError, match=r"embed_dim is 64; .* num_heads = 0"):
        MultiheadDiffAttnV2(64, 0)
    with pytest.raises(ValueError, match=r"num_kv_heads is 3; .* num_heads, which is 4"):
        MultiheadDiffAttn(64, 0, 4, 3)
    with pytest.raises(ValueError, match=r"implementation is 'flash'; .*fused.*eager"):
        MultiheadDiffAttn(64, 0, 4, implementation="flash")
    module = make(1)
    with pytest.raises(ValueError, match=r"x is \(2, 5, 127\); .*embed_dim = 128"):
        module(torch.zeros(2, 5, 127, dtype=F64))
    with pytest.raises(ValueError, match="rel_pos has 4 positions; x has 5 tokens"):
        module(torch.zeros(2, 5, EMBED, dtype=F64), tables(module, 4))
    encoder = make(1, causal=False)
    with pytest.raises(ValueError, match="cache was given to a module with causal=False"):
        encoder(torch.zeros(1, 1, EMBED, dtype=F64), cache=encoder.make_cache(1, 4))


@pytest.mark.parametrize("version", [1, 2])
def test_wrong_dtypes_of_x(version: int) -> None:
    module = make(version, dtype=torch.float32)
    x = torch.zeros(2, 5, EMBED)
    with pytest.raises(TypeError, match=r"x has dtype torch.int64, .*torch.float32"):
        module(x.long())
    with pytest.raises(TypeError, match=r"x has dtype torch.float64, .*torch.float32"):
        module(x.double())
    with pytest.raises(TypeError, match="x is str, expected a tensor"):
        module("x")
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x.bfloat16()).dtype == torch.bfloat16
        with pytest.raises(TypeError, match=r"x has dtype torch.int64"):
            module(x.long())


def test_what_replaced_a_projection_may_cast() -> None:
    class Casts(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(self.weight.dtype))

    module = make(2, dtype=torch.float32)
    for name in ("q_proj", "k_proj", "v_proj", "lambda_proj"):
        linear = getattr(module, name)
        replacement = Casts(linear.in_features, linear.out_features, bias=False)
        replacement.load_state_dict(linear.state_dict())
        setattr(module, name, replacement)
    x = torch.randn(2, 5, EMBED, dtype=F64)
    assert torch.equal(module(x), module(x.float()))


WRONG_TABLES: dict[str, tuple[Any, str]] = {
    "too wide": ((torch.ones(8, 9), torch.ones(8, 9)), r"rel_pos has shapes \(8, 9\) and \(8, 9\)"),
    "different": (
        (torch.ones(8, 8), torch.ones(8, 4)),
        r"rel_pos has shapes \(8, 8\) and \(8, 4\)",
    ),
    "of rank 3": ((torch.ones(1, 8, 8), torch.ones(1, 8, 8)), r"rel_pos has shapes \(1, 8, 8\)"),
    "of no columns": ((torch.ones(8, 0), torch.ones(8, 0)), r"rel_pos has shapes \(8, 0\)"),
    "sparse": ((torch.ones(8, 8).to_sparse(), torch.ones(8, 8)), r"rel_pos\[0\] is a .*sparse"),
    "complex": ((torch.ones(8, 8).cfloat(), torch.ones(8, 8)), "rel_pos.0. has dtype .*complex64"),
    "elsewhere": ((torch.ones(8, 8), torch.ones(8, 8).to("meta")), "rel_pos.1. is on device meta"),
    "cos alone": ((torch.ones(8, 8),), "rel_pos is tuple"),
    "one tensor": (torch.ones(2, 8, 8), "rel_pos is Tensor"),
    "no tensors": ((1.0, 0.0), "rel_pos is tuple"),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", list(WRONG_TABLES))
def test_wrong_tables(name: str, cached: bool) -> None:
    module = make(1)  # d = 16
    rel_pos, message = WRONG_TABLES[name]
    cache = module.make_cache(2, 8) if cached else None
    with torch.no_grad(), pytest.raises((ValueError, TypeError), match=message):
        module(torch.zeros(2, 5, EMBED, dtype=F64), rel_pos, cache)
    assert cache is None or cache.seqlens.tolist() == [0, 0]


@pytest.mark.parametrize("version", [1, 2])
def test_tensors_that_hold_nothing(version: int) -> None:
    """Freed, sparse, without memory: refused by name, where torch crashes or names none of ours."""
    module, x = make(version), torch.zeros(2, 5, EMBED, dtype=F64)
    freed = torch.zeros(8, 8)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"rel_pos\[1\] has a storage of 0 bytes"):
        module(x, (torch.ones(8, 8), freed))
    with pytest.raises(TypeError, match="x is a torch.sparse_coo tensor"):
        module(x.to_sparse())
    with pytest.raises(ValueError, match="x is on device meta, the parameters are on cpu"):
        module(x.to("meta"))
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="x has a storage of 0 bytes"):
        module(x)


@pytest.mark.parametrize("version", [1, 2])
def test_wrong_caches(version: int) -> None:
    module, x = make(version), torch.zeros(2, 5, EMBED, dtype=F64)
    for name in ("k", "v"):
        cache = module.make_cache(2, 8)
        setattr(cache, name, getattr(cache, name)[..., :4])
        with torch.no_grad(), pytest.raises(ValueError, match=rf"cache\.{name} has shape .* 4\)"):
            module(x, cache=cache)
        setattr(cache, name, getattr(module.make_cache(2, 8), name).repeat(1, 1, 2, 1))
        with torch.no_grad(), pytest.raises(ValueError, match=rf"cache\.{name} has shape"):
            module(x, cache=cache)
        setattr(cache, name, torch.zeros(2, 8).to_sparse())
        with torch.no_grad(), pytest.raises(TypeError, match=rf"cache\.{name} is a .*sparse"):
            module(x, cache=cache)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["k", "v", "seqlens"])
def test_caches_are_checked_before_x_is_projected(version: int, name: str) -> None:
    """The projections of this x take more memory than there is."""
    module, cache = make(version), make(version).make_cache(2, 8)
    x = torch.zeros(2, 1, EMBED, dtype=F64).expand(2, 2**42, EMBED)
    setattr(cache, name, torch.cat([getattr(cache, name)] * 2))
    with torch.no_grad(), pytest.raises(ValueError, match=rf"cache\.{name} has"):
        module(x, cache=cache)


@pytest.mark.parametrize("version", [1, 2])
def test_no_append_under_a_transform(version: int) -> None:
    """It was made, and then the cache's seqlens could not be advanced."""
    module, x = make(version), torch.zeros(2, 5, EMBED, dtype=F64)
    cache = module.make_cache(2, 8)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="cache .* torch.func"):
        torch.func.vjp(lambda x: module(x, cache=cache), x)
    assert not cache.k.any()


def test_numbers_of_a_module() -> None:
    with pytest.raises(ValueError, match="depth is -2147483648"):
        MultiheadDiffAttn(EMBED, -(2**31), HEADS)
    for depth in (1j, "x", None):
        with pytest.raises(TypeError, match="depth is .*, accepted: the index of a layer"):
            MultiheadDiffAttn(EMBED, depth, HEADS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="embed_dim is 'x'"):
        MultiheadDiffAttnV2("x", HEADS)  # type: ignore[arg-type]


def freed() -> Tensor:
    number = torch.tensor(1)
    number.untyped_storage().resize_(0)
    return number


MADE: dict[str, Any] = {  # each number of the modules and of the functions next to them
    "embed_dim": lambda n: MultiheadDiffAttnV2(n, HEADS),
    "num_heads": lambda n: MultiheadDiffAttn(EMBED, 0, n),
    "num_kv_heads": lambda n: MultiheadDiffAttnV2(EMBED, HEADS, n),
    "head_dim": lambda n: MultiheadDiffAttnV2(EMBED, HEADS, head_dim=n),
    "depth": lambda n: MultiheadDiffAttn(EMBED, n, HEADS),
    "batch_size": lambda n: make(1).make_cache(n, 8),
    "capacity": lambda n: make(2).make_cache(1, n),
    "seqlen": lambda n: rotary_tables(n, 16),
    "rotary_dim": lambda n: rotary_tables(8, n),
}


@pytest.mark.parametrize("name", list(MADE))
def test_an_integer_is_no_tensor(name: str) -> None:
    """To read one that FSDP has freed ended the process."""
    with pytest.raises(TypeError, match=f"^{name} is a tensor, accepted: "):
        MADE[name](freed())
    with pytest.raises(TypeError, match=f"^{name} is a tensor, accepted: "):
        MADE[name](torch.tensor(16))
    with pytest.raises(TypeError, match=f"^{name} is 16.0 .float., accepted: "):
        MADE[name](16.0)


@pytest.mark.parametrize(
    "name", ["lambda_init", "norm_eps", "norm_affine", "causal", "window_size"]
)
def test_an_option_whose_memory_is_freed(name: str) -> None:
    message = f"^{name} (has a storage of 0 bytes|is a tensor)"
    with pytest.raises((RuntimeError, TypeError, ValueError), match=message):
        MultiheadDiffAttn(EMBED, 0, HEADS, **{name: freed()})


def test_memory_that_is_freed_within_an_option() -> None:
    with pytest.raises((RuntimeError, ValueError), match="^window_size (has a storage|is .'x', a)"):
        MultiheadDiffAttn(EMBED, 0, HEADS, window_size=("x", freed()))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="^base has a storage of 0 bytes"):
        rotary_tables(8, 16, base=freed())  # type: ignore[arg-type]
