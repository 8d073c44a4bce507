"""Messages between the ranks of a mesh: torch.distributed's functional collectives, by their ops.

Each is posted and returns at once; `wait` makes its result readable. What a rank does in between
overlaps the transport. The ops are called by name because their Python wrappers were renamed
between the versions of torch that this package supports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

_ops = torch.ops._c10d_functional


@dataclass(frozen=True)
class Ranks:
    """The ranks of a one-dimensional mesh, and which of them this process is."""

    group: str
    size: int
    rank: int


def ranks_of(mesh: Any) -> Ranks:
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh is {type(mesh).__name__}, accepted: a DeviceMesh of one dimension")
    if mesh.ndim != 1:
        names = "" if mesh.mesh_dim_names is None else f" {mesh.mesh_dim_names}"
        raise ValueError(
            f"mesh has {mesh.ndim} dimensions{names}, accepted: one, such as mesh['cp']: the ranks "
            "that share a sequence"
        )
    return Ranks(mesh.get_group().group_name, mesh.size(), mesh.get_local_rank())


def gather(x: Tensor, ranks: Ranks) -> Tensor:
    """Every rank's x (n, ..), one behind another: (size·n, ..)."""
    return _ops.all_gather_into_tensor(x.contiguous(), ranks.size, ranks.group)


def add_and_scatter(parts: Tensor, ranks: Ranks) -> Tensor:
    """Of (size·n, ..) the n rows of this rank, added up over all ranks: (n, ..)."""
    return _ops.reduce_scatter_tensor(parts.contiguous(), "sum", ranks.size, ranks.group)


def exchange(parts: Tensor, ranks: Ranks) -> Tensor:
    """Sends row i of (size, ..) to rank i; row j of the result came from rank j."""
    rows = [1] * ranks.size
    return _ops.all_to_all_single(parts.contiguous(), rows, rows, ranks.group)


def pass_on(x: Tensor, ranks: Ranks) -> Tensor:
    """Sends the vector x to the next rank; the result, as long, is the previous rank's."""
    sent, received = [0] * ranks.size, [0] * ranks.size
    sent[(ranks.rank + 1) % ranks.size] = received[(ranks.rank - 1) % ranks.size] = x.numel()
    return _ops.all_to_all_single(x, received, sent, ranks.group)


def wait(posted: Tensor) -> Tensor:
    return _ops.wait_tensor(posted)
