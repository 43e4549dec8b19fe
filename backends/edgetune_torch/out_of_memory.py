"""What torch and the libraries below it say where memory ran out."""

from __future__ import annotations

import torch

from edgetune.out_of_memory import FailedAllocations

SIGNS = (
    "can't allocate memory", "annot allocate memory", "not enough memory", "bad_alloc",
    "out of memory", "could not create", "could not execute a primitive", "can't start new thread",
    "_STATUS_ALLOC_FAILED", "_STATUS_NOT_INITIALIZED",
)  # fmt: skip
"""What an allocation says that failed outside of a card's allocator, in a RuntimeError: torch's on
CPU (two systems), the system's, the C++ library's, CUDA's and that of pinned memory, oneDNN's (a
primitive and its scratch memory), that of a thread's stack, and cuBLAS', cuDNN's and cuSOLVER's,
which say NOT_INITIALIZED where their own first allocation fails."""

_failed = FailedAllocations(SIGNS, (torch.OutOfMemoryError,))
is_out_of_memory, out_of_memory = _failed.include, _failed.translated
