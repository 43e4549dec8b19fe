"""Bytes that tensors hold at a moment, on either backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Held = Callable[[], int]


@contextmanager
def held_bytes(backend: str) -> Iterator[Held]:
    """Yield what says how many bytes are held; of torch those made while the context is open."""
    if backend == "mlx":
        yield _held_by_mlx
        return
    from support.held_torch import Counted

    with Counted() as counted:
        yield lambda: counted.live


def _held_by_mlx() -> int:
    import mlx.core as mx

    mx.synchronize()
    return int(mx.get_active_memory())
