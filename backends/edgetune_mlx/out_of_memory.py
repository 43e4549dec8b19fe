"""Which errors mean that memory ran out, whichever library asked for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from edgetune.backend import DeviceOutOfMemoryError

SIGNS = (
    "[malloc", "[metal::malloc]", "Insufficient Memory", "bad_alloc", "llocate memory",
    "can't start new thread",
)  # fmt: skip
"""What a RuntimeError says where an allocation failed: MLX's two allocators, Metal's command
buffers, the C++ library, the system, that of a thread's stack.

Not yet seen on a Mac: the texts are those of MLX 0.32's source; a command buffer may also end the
process instead of raising."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an allocation that failed from other errors."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn an allocation that failed into the protocol's error."""
    try:
        yield
    except DeviceOutOfMemoryError:
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        lines = str(error).splitlines() or ["the system gave no more memory"]
        raise DeviceOutOfMemoryError(lines[0]) from None
