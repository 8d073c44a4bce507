"""What can be wrong with a kernel. Each class is one rule of the machine."""

from __future__ import annotations


class SimError(Exception):
    """A kernel broke a rule; the message says which, and where."""

    message: str = ""
    kernel: str = ""
    ptx_line: int | None = None
    ptx_text: str = ""
    source: str = ""
    cta: tuple[int, int, int] | None = None
    warp: int | None = None
    lane: int | None = None
    address: int | None = None
    tensor: str | None = None


class OutOfBounds(SimError):
    """An access outside every registered tensor, or outside shared or local memory."""


class Misaligned(SimError):
    """An address that is not a multiple of the access's size."""


class Undefined(SimError):
    """An undefined value reached a branch, an address or global memory."""


class Race(SimError):
    """Two accesses to one place without an order between them."""


class Divergence(SimError):
    """Part of a warp executed an instruction that needs all of it."""


class Deadlock(SimError):
    """No warp of a CTA can go on."""


class LaunchLimit(SimError):
    """The launch asks for more than the device has."""


class Unsupported(SimError):
    """The engine does not know this instruction and will not guess."""


class Trap(SimError):
    """The kernel stopped itself: trap or a failed assertion."""


class BadProgram(SimError):
    """The PTX cannot be parsed, or the launch does not fit the kernel."""
