"""One thread for the oracle and the emulation, all of them for the implementation under test.

Their tensors are small: a second thread costs more in barriers than it earns, and 80 times more
when another process holds a core.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
