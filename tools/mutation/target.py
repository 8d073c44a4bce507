"""A kernel whose PTX is weakened, and what has to notice it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from support.impls import Impl
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Target:
    parts: tuple[str, ...]  # of the kernel's mangled name: together they name one
    check: Callable[[Impl], None]  # raises if something is wrong
    architecture: int = 80


MakeTarget = Callable[[tuple[int, int]], Target]  # of a shape (d, dv)


def identifier(name: str) -> str:
    """In a mangled name an identifier follows its length."""
    return f"{len(name)}{name}"


def kernel(name: str, traits: str, capped: bool = False) -> str:
    """How a kernel's mangled name goes on; with a soft cap it has traits of its own."""
    own = f"INS1_{identifier(traits)}"
    return identifier(name) + (f"INS0_{identifier('Capped')}{own}" if capped else own)


def spread(x: Tensor) -> Tensor:
    """The same numbers in rows with NaN between them."""
    return pad(x, (0, 128), value=float("nan"))[..., : x.shape[-1]]
