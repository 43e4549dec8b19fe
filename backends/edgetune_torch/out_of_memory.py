"""Which errors mean that memory ran out, whichever library asked for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgetune.backend import DeviceOutOfMemoryError

SIGNS = (
    "can't allocate memory", "annot allocate memory", "not enough memory", "bad_alloc",
    "out of memory", "could not create", "could not execute a primitive", "can't start new thread",
    "_STATUS_ALLOC_FAILED", "_STATUS_NOT_INITIALIZED",
)  # fmt: skip
"""What an allocation says that failed outside of a card's allocator, in a RuntimeError: torch's on
CPU (two systems), the system's, the C++ library's, CUDA's and that of pinned memory, oneDNN's (a
primitive and its scratch memory), that of a thread's stack, and cuBLAS', cuDNN's and cuSOLVER's,
which say NOT_INITIALIZED where their own first allocation fails."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an allocation that failed from other errors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
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
