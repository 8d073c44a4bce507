"""A child of a process whose other threads are in calls can call, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.impls import Impl

pytestmark = pytest.mark.needs("checks_values")  # the CPU's working memory; CUDA does not fork

# Workers of many threads leave hundreds of kept blocks to look through, so that the pool's lock is
# closed much of the time. Afterwards there is one thread: OpenMP's others do not survive a fork.
PROGRAM = """
import os, signal, threading
import torch
import diffattn_cuda

q, k, v = torch.ones(1, 96, 2, 64), torch.ones(1, 96, 2, 64), torch.ones(1, 96, 1, 64)
torch.set_num_threads(64)
diffattn_cuda.diff_flash_attn_func(q, k, v, 0.5)
torch.set_num_threads(1)
call = lambda: diffattn_cuda.diff_flash_attn_func(q[:, :2], k[:, :2], v[:, :2], 0.5)
running = True


def work():
    while running:
        call()


busy = [threading.Thread(target=work) for _ in range(3)]
for thread in busy:
    thread.start()
hung = 0
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # ends a child that hangs
        call()
        os._exit(0)
    hung = os.waitpid(child, 0)[1]
    if hung:
        break
running = False
for thread in busy:
    thread.join()
raise SystemExit(hung != 0)
"""


def test_a_child_does_not_wait_for_a_thread_it_does_not_have(impl: Impl) -> None:
    """The pool of working memory has a lock; a fork must not copy it closed."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    assert subprocess.run(command, cwd=root, timeout=60).returncode == 0
