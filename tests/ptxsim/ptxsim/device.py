"""Devices, tensors and launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._engine import native
from .errors import BadProgram
from .module import Kernel, probe_resources

# "undefined_branch" is the part of "undefined" that concerns predicates: with it off, such a branch goes the seed's way.
# "race_warp" is the part of "race" and "race_global" between lanes of one warp: kernels older than Volta take a warp for
# one thread.
CHECKS = (
    "bounds", "align", "undefined", "undefined_branch", "race", "race_warp", "race_global", "divergence", "deadlock", "limits", "async",
    "proxy", "proxy_war", "init_fence", "mbarrier", "wgmma", "descriptor", "release_by_warp", "elect",
)  # fmt: skip


# CUtensorMapDataType, in order.
TENSOR_TYPES = (
    "UINT8", "UINT16", "UINT32", "INT32", "UINT64", "INT64", "FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16", "FLOAT32_FTZ", "TFLOAT32",
    "TFLOAT32_FTZ",
)  # fmt: skip


class Counters(dict):
    """What one launch did: totals by name; `lines` and `ptx_lines` hold the same per source line."""


class Tensor:
    """Device memory: a mapping of its own between guard pages, or host memory owned by someone else."""

    def __init__(self, allocation: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._allocation = allocation
        self.shape = shape
        self.dtype = dtype

    @property
    def ptr(self) -> int:
        return self._allocation.address

    @property
    def name(self) -> str:
        return self._allocation.name

    @property
    def nbytes(self) -> int:
        return self._allocation.nbytes

    @property
    def undefined_bytes(self) -> int:
        """Bytes that nobody has written yet."""
        return self._allocation.undefined_bytes

    def undefined(self) -> np.ndarray:
        """Which elements have bytes that nobody has written yet, as booleans of the tensor's shape."""
        return undefined_of(self._allocation).reshape(*self.shape, self.dtype.itemsize).any(-1)

    def numpy(self) -> np.ndarray:
        """A view of the memory; what was never written reads as NaN (all ones)."""
        if self.nbytes == 0:
            return np.empty(self.shape, self.dtype)
        return np.frombuffer(self._allocation, self.dtype).reshape(self.shape)

    def read(self, offset: int, nbytes: int) -> bytes:
        return self._allocation.read(offset, nbytes)

    def write(self, offset: int, data: bytes) -> None:
        """Writes bytes from the host and marks them defined."""
        self._allocation.write(offset, data)

    def release(self) -> None:
        """Unregisters the memory: kernels may not touch it any more."""
        self._allocation.release()

    def __del__(self) -> None:
        try:
            self._allocation.release()
        except Exception:  # the interpreter is going down
            pass


class Registration:
    """Host memory of others that kernels may touch, until it is unregistered."""

    def __init__(self, allocation: Any) -> None:
        self._allocation = allocation

    def allow(self, offset: int, shape: Sequence[int], strides: Sequence[int], itemsize: int, defined: bool = True) -> Registration:
        """Opens the bytes of a strided view (offset and strides in bytes). After the first view all bytes outside the
        views are gaps, which no kernel may touch. A view that is not defined is fresh output: NaN poison, undefined."""
        self._allocation.allow(offset, list(shape), list(strides), itemsize, defined)
        return self

    @property
    def undefined_bytes(self) -> int:
        """Bytes that nobody has written yet, without the gaps."""
        return self._allocation.undefined_bytes

    def undefined(self) -> np.ndarray:
        """Which bytes nobody has written yet, as booleans."""
        return undefined_of(self._allocation)

    def unregister(self) -> None:
        self._allocation.release()


def undefined_of(allocation: Any) -> np.ndarray:
    return np.frombuffer(allocation.undefined(), np.bool_)


class Device:
    """A GPU of the given profile. Every choice the hardware leaves open follows from the seed (with threads=1, exactly)."""

    _active: list[Device] = []

    def __init__(self, profile: str = "sm_80", seed: int = 0, threads: int = 2, checks: Mapping[str, bool] | None = None) -> None:
        mask = 0
        enabled = dict.fromkeys(CHECKS, True) | dict(checks or {})
        for name, on in enabled.items():
            bit = native.check_bit(name)
            if not bit:
                raise ValueError(f"no check is called {name!r}; there are {', '.join(CHECKS)}")
            mask |= bit if on else 0
        self.profile = profile
        self.native = native.Device(profile, seed, threads, mask)

    @property
    def seed(self) -> int:
        return self.native.seed

    @seed.setter
    def seed(self, value: int) -> None:
        self.native.seed = value

    @property
    def instruction_limit(self) -> int:
        """Warp instructions one CTA may run before it counts as a livelock (Deadlock)."""
        return self.native.instruction_limit

    @instruction_limit.setter
    def instruction_limit(self, value: int) -> None:
        self.native.instruction_limit = value

    @property
    def echo(self) -> bool:
        """Whether a kernel's printf also goes to stdout."""
        return self.native.echo

    @echo.setter
    def echo(self, value: bool) -> None:
        self.native.echo = value

    def output(self) -> str:
        """What kernels printed since the last call."""
        return self.native.take_output()

    # Memory.

    def tensor(self, array: np.ndarray, name: str = "tensor") -> Tensor:
        array = np.ascontiguousarray(array)
        out = Tensor(native.allocate(array.nbytes, name, False, False), array.shape, array.dtype)
        out.numpy()[...] = array
        return out

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32, name: str = "empty") -> Tensor:
        """Fresh output: NaN poison, and undefined until a kernel writes it."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return Tensor(native.allocate(nbytes, name, True, False), shape, dtype)

    def sparse(self, nbytes: int, name: str = "sparse") -> Tensor:
        """Zeros that take memory only where touched: strides beyond 2**32 for kilobytes."""
        return Tensor(native.allocate(nbytes, name, False, True), (nbytes,), np.dtype(np.uint8))

    def register(self, address: int, nbytes: int, name: str = "host", writable: bool = True, defined: bool = True) -> Registration:
        """Lets kernels touch host memory owned by others. Memory that is not defined is fresh output: it is filled with
        NaN poison, and undefined until a kernel writes it."""
        return Registration(native.register(address, nbytes, name, writable, defined))

    def unregister(self, address: int) -> None:
        native.unregister(address)

    def tensor_map(
        self,
        base: Tensor | int,
        dtype: str,
        dims: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        element_strides: Sequence[int] | None = None,
        interleave: int = 0,
        swizzle: int = 0,
        nan_fill: bool = False,
    ) -> bytes:
        """What cuTensorMapEncodeTiled writes, to be passed to a kernel by value. Innermost dimension first; strides are
        in bytes, of all dimensions but the innermost; `swizzle` is the span in bytes: 0, 32, 64 or 128; `interleave`
        16 or 32 bytes, or 0. `dtype` is the name of a CUtensorMapDataType, such as "FLOAT16"."""
        address = base.ptr if isinstance(base, Tensor) else base
        steps = [1] * len(dims) if element_strides is None else list(element_strides)
        modes = {0: 0, 32: 1, 64: 2, 128: 3}[swizzle], {0: 0, 16: 1, 32: 2}[interleave]
        return native.tensor_map(
            TENSOR_TYPES.index(dtype), address, list(dims), list(strides), list(box), steps, modes[1], modes[0], nan_fill
        )

    # Launches.

    def launch(
        self,
        kernel: Kernel,
        grid: Any,
        block: Any,
        args: Sequence[Any],
        smem: int = 0,
        cooperative: bool = False,
        cluster: Any = None,
        programmatic: bool = False,
    ) -> Counters:
        """Runs a kernel. All CTAs of a cooperative launch are resident together, and its grid has a barrier. `cluster` is the
        shape of a cluster in CTAs; without it the kernel's own counts. A programmatic launch may start while the grid
        launched before it still runs: until its griddepcontrol.wait it may not touch what that grid writes."""
        probe_resources(kernel, self.profile)
        data = pack_arguments(kernel, args)
        shape = [0, 0, 0] if cluster is None else dim3(cluster)
        return Counters(self.native.launch(kernel.program, dim3(grid), dim3(block), data, smem, cooperative, shape, programmatic))

    def launches(self) -> list[tuple[str, Counters]]:
        """Kernel name and counters of every launch host code made since the last call, in order."""
        return [(name, Counters(report)) for name, report in native.take_reports()]

    # The device host code launches on.

    def activate(self) -> None:
        native.set_current_device(self.native)

    def __enter__(self) -> Device:
        Device._active.append(self)
        self.activate()
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        Device._active.pop()
        native.set_current_device(Device._active[-1].native if Device._active else None)
        if kind is None:
            raise_pending()
        else:
            native.take_error()


def raise_pending() -> None:
    """Raises the error of a kernel that host code launched, if there was one."""
    error = native.take_error()
    if error is not None:
        raise error


def dim3(value: Any) -> list[int]:
    dims = [value] if isinstance(value, (int, np.integer)) else list(value)
    if len(dims) > 3 or any(d < 0 or d > 0xFFFFFFFF for d in dims):
        raise ValueError(f"not a grid or block size: {value!r}")
    return [int(d) for d in dims] + [1] * (3 - len(dims))


def pack_arguments(kernel: Kernel, args: Sequence[Any]) -> bytes:
    params = kernel.program.params
    if len(args) != len(params):
        raise BadProgram(f"kernel {kernel.name} takes {len(params)} arguments, {len(args)} given")
    data = bytearray(kernel.program.param_bytes)
    for value, (name, offset, size) in zip(args, params, strict=True):
        raw = argument_bytes(value, size)
        if len(raw) != size:
            raise BadProgram(f"parameter {name} of {kernel.name} has {size} bytes, the argument {value!r} has {len(raw)}")
        data[offset : offset + size] = raw
    return bytes(data)


def argument_bytes(value: Any, size: int) -> bytes:
    if isinstance(value, Tensor):
        return value.ptr.to_bytes(8, "little")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tobytes()
    if isinstance(value, (bool, int)):
        return (int(value) & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
    if isinstance(value, float):
        return np.array(value, {2: np.float16, 4: np.float32, 8: np.float64}.get(size, np.float32)).tobytes()
    if value is None:
        return bytes(size)
    raise TypeError(f"cannot pass {type(value).__name__} to a kernel")
