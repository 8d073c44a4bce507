"""The package on a simulated GPU: `pytest --device sim`.

The kernels are the objects that ship (build/cuda), the binding is that of CUDA; tensors stay on the
CPU, whose dispatch key the simulator takes over. Every launch is held to the memory that its params
describe (sim_memory, sim_regions).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from diffattn_cuda import groups
from diffattn_cuda.ops import OPS  # what is taken over

from . import sim_build
from .sim_memory import described
from .sim_regions import registered

ptxsim = sim_build.ptxsim
PROFILES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"]


class Simulator:
    """Takes over the CPU kernels of `torch.ops.diffattn` in this process, for good."""

    def __init__(self, profile: str = "sm_80", seed: int = 0) -> None:
        self.device = ptxsim.Device(profile, seed)
        self.binding = sim_build.load_binding()
        self.serve = self.launch_described  # what a launch does; tests put faults here
        self._error: Exception | None = None
        self._twin = torch.library.Library("diffattn_sim", "FRAGMENT")
        self._library = torch.library.Library("diffattn", "IMPL")
        for op in OPS:
            self._take_over(op)
        self.binding.set_launcher(self._launch)
        groups.NATIVE_DEVICES.discard("cpu")  # nor does the CUDA binding take groups

    @contextmanager
    def on(self, profile: str, seed: int = 0, **checks: bool) -> Iterator[None]:
        """Another device, for a while."""
        before, self.device = self.device, ptxsim.Device(profile, seed, checks=checks)
        try:
            yield
        finally:
            self.device = before

    def launch(self, params: Any) -> None:
        """The entry point of the waist; raises what the simulator found."""
        with self.device:
            try:
                self._call(params)
            except RuntimeError:
                ptxsim.raise_pending()
                raise

    def launch_described(self, params: Any) -> None:
        with registered(self.device, described(params)):
            self.launch(params)

    def _call(self, params: Any) -> None:
        memory: list[Any] = []  # held until the launch is over

        def lend(nbytes: int) -> int:
            if not nbytes:
                return 0
            memory.append(self.device.empty(nbytes, np.uint8, "workspace"))
            return memory[0].ptr

        params.launch(lend)

    def _launch(self, params: Any) -> None:
        try:
            self.serve(params)
        except Exception as error:
            self._error = error  # C++ knows only what it says
            raise

    def _take_over(self, op: str) -> None:
        schema = str(getattr(torch.ops.diffattn, op).default._schema)
        self._twin.define(schema.removeprefix("diffattn::"))
        twin = getattr(torch.ops.diffattn_sim, op)

        def kernel(*args: Any) -> Any:
            try:
                return twin(*args)
            except RuntimeError:
                error, self._error = self._error, None
                if error is not None:
                    raise error from None
                raise

        self._library.impl(op, kernel, "CPU", allow_override=True)


_running: Simulator | None = None


def start(profile: str = "sm_80", seed: int = 0) -> Simulator:
    """The one of this process."""
    global _running
    if _running is None:
        _running = Simulator(profile, seed)
    return _running
