"""Which kernels of our own are left to their texts for now.

A run that began where they could not be had goes on without them, so that it ends with the same
bits. Each kernel asks here before it computes; a session says it for the time that it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

ATTENTION: Final = "attention"
POINTWISE: Final = "pointwise"
LOSS: Final = "loss"
OF_PROCESSORS: Final = frozenset({ATTENTION, POINTWISE, LOSS})
"""Those in C that round otherwise than their texts; NF4 is unpacked to the same bits by all."""
OF_CARDS: Final = "Triton"
"""Those of cards, which come together."""

_left_out: ContextVar[frozenset[str]] = ContextVar("left_out", default=frozenset())


def used(part: str) -> bool:
    """Return whether kernels may compute, where they are to be had."""
    return part not in _left_out.get()


@contextmanager
def leaving_out(parts: frozenset[str]) -> Iterator[None]:
    """Leave these kernels to their texts."""
    token = _left_out.set(parts)
    try:
        yield
    finally:
        _left_out.reset(token)
