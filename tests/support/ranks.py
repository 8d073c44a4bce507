"""Processes that are the ranks of a gloo group, for tests: each runs what the test sends to all."""

from __future__ import annotations

import io
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

GONE = "the process is gone"


class Ranks:
    """Starting them takes seconds, so tests share one."""

    def __init__(self, size: int, seconds: float) -> None:
        # One server imports torch, before it has a thread, and every rank is a fork of it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "diffattn_cuda.distributed", "support.checks"])
        self.seconds = seconds
        self.folder = tempfile.TemporaryDirectory()
        store = Path(self.folder.name) / "store"
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, store, rank, size, seconds))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def answers(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What function(*args) returned on each rank; an error as its text, GONE of a dead rank."""
        for pipe in self.pipes:
            pipe.send_bytes(_packed((function, args)))
        return [self._answer(pipe) for pipe in self.pipes]

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The same, where an error on any rank is one of the test."""
        answers = self.answers(function, *args)
        wrong = [f"rank {i}: {x}" for i, x in enumerate(answers) if isinstance(x, str)]
        assert not wrong, "\n".join(wrong)
        return answers

    def _answer(self, pipe: Connection) -> Any:
        assert pipe.poll(2 * self.seconds), "a rank hangs"
        try:
            return torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
        except EOFError:
            return GONE

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()  # which ends a rank's loop
        for process in self.processes:
            process.join(5)
            process.kill()
        self.folder.cleanup()


def _packed(x: Any) -> bytes:
    """Tensors as bytes; a pipe would pass them as shared memory, which dies with its process."""
    buffer = io.BytesIO()
    torch.save(x, buffer)
    return buffer.getvalue()


def _serve(pipe: Connection, store: Path, rank: int, size: int, seconds: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size,
                            timeout=timedelta(seconds=seconds))  # fmt: skip
    while True:
        try:
            function, args = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
        except EOFError:
            break
        try:
            answer = function(*args)
        except BaseException:
            answer = traceback.format_exc()
        pipe.send_bytes(_packed(answer))
    dist.destroy_process_group()


@cache
def mesh_of(size: int) -> DeviceMesh:
    """In a rank: the mesh of so many ranks that it is in. Meshes next to it do the same work."""
    grid = init_device_mesh(
        "cpu", (dist.get_world_size() // size, size), mesh_dim_names=("dp", "cp")
    )
    return grid["cp"]
