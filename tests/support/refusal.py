"""A wrong argument has to be refused in words that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refuses(*words: str) -> Iterator[None]:
    """Expect ValueError, TypeError or RuntimeError whose message holds every word."""
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        yield
    message = str(caught.value).lower()
    missing = [word for word in words if word.lower() not in message]
    assert not missing, f"the message lacks {missing}: {caught.value}"
