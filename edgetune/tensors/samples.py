"""Telling stored tensors apart by a few of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from edgetune.errors import ModelError
from edgetune.tensors.header import StoredTensor

SAMPLE: Final = 4096
"""Bytes of a tensor that are read at once to tell it from another."""

_HALVES: Final = ("float16", "bfloat16")


def same_sample(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether two tensors agree in shape, type and evenly spread samples of bytes."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        for offset in range(0, one.nbytes, max(one.nbytes // 64, 1)):
            first.seek(one.start + offset)
            second.seek(other.start + offset)
            length = min(SAMPLE, one.nbytes - offset)
            if first.read(length) != second.read(length):
                return False
    return True


def same_rounded(wide: StoredTensor, narrow: StoredTensor) -> bool:
    """Return whether samples of 32-bit numbers are a 16-bit tensor's when they are rounded to its format."""
    if (wide.shape, wide.dtype) != (narrow.shape, "float32") or narrow.dtype not in _HALVES:
        return False
    import ml_dtypes
    import numpy as np

    number = np.dtype(ml_dtypes.bfloat16 if narrow.dtype == "bfloat16" else np.float16)
    count = narrow.nbytes // 2
    with wide.file.open("rb") as first, narrow.file.open("rb") as second:
        for at in range(0, count, max(count // 64, 1)):
            first.seek(wide.start + 4 * at)
            second.seek(narrow.start + 2 * at)
            length = min(SAMPLE, count - at)
            exact = np.frombuffer(first.read(4 * length), np.float32)
            rounded = np.frombuffer(second.read(2 * length), number)
            with np.errstate(over="ignore", invalid="ignore"):
                if not np.array_equal(exact.astype(number), rounded):
                    return False
    return True


def sample_digest(tensors: Iterable[StoredTensor]) -> str:
    """Return the SHA-256 of two pages from within each tensor: other weights, another digest.

    Small tensors are read whole. Training changes some of every few hundred numbers.

    Raises:
        ModelError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    with ExitStack() as held:
        streams: dict[Path, BinaryIO] = {}
        for tensor in tensors:
            try:
                if tensor.file not in streams:
                    streams[tensor.file] = held.enter_context(tensor.file.open("rb"))
                for offset in (tensor.nbytes // 3, 2 * tensor.nbytes // 3):
                    first = max(0, min(offset, tensor.nbytes - SAMPLE))
                    streams[tensor.file].seek(tensor.start + first)
                    digest.update(streams[tensor.file].read(min(SAMPLE, tensor.nbytes)))
            except OSError as error:
                raise ModelError(
                    f"{tensor.file} cannot be read: {error.strerror or error}."
                ) from error
    return digest.hexdigest()
