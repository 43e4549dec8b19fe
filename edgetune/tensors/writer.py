"""Safetensors files of any size, written tensor by tensor as the values come.

The header is made from names, number formats and shapes alone, so that the data follows it
without ever being held: an 8-byte little-endian length, JSON padded with spaces to a multiple
of 8, the bytes of all tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.files import replacing
from edgetune.tensors.header import TYPES
from edgetune.tensors.reader import number_type

Chunks = Iterator[NDArray[Any]]

CHUNK_ELEMENTS: Final = 2**22
"""Elements worked on at once: 16 MiB in float32, a few of which exist at a time."""

_CODES: Final[Mapping[str, str]] = {dtype: code for code, (dtype, _) in TYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A tensor to be written; ``chunks`` makes its values, in order, when their turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Chunks]

    @classmethod
    def of(cls, name: str, values: NDArray[Any], dtype: str | None = None) -> Outgoing:
        """Return values that are in memory, converted to ``dtype`` some rows at a time."""
        dtype = dtype or values.dtype.name
        chunks = partial(_rows, values, number_type(dtype))
        return cls(name=name, dtype=dtype, shape=values.shape, chunks=chunks)

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return number_type(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.width


def write_safetensors(
    path: Path,
    tensors: Sequence[Outgoing],
    made_for: str = "pt",
    told: Mapping[str, str] | None = None,
) -> str:
    """Write one file, whole or not at all, and return the SHA-256 of its bytes.

    The widest number formats come first, so that every tensor is aligned. ``made_for`` is the
    framework that the file names, from which other tools know how to read it; ``told`` is what
    else it says of itself.

    Raises:
        ValueError: if the chunks of a tensor are not of its size and number format.
        OSError: if the file cannot be written; what was at its place stays.
    """
    ordered = sorted(tensors, key=lambda tensor: -tensor.width)
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as file:
        for data in _pieces(ordered, {"format": made_for, **(told or {})}):
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def write_scratch(path: Path, tensors: Sequence[Outgoing], made_for: str) -> None:
    """Write a file for this process alone: neither flushed to the disk nor summed.

    Raises:
        OSError: if it cannot be written.
    """
    with path.open("wb") as file:
        for data in _pieces(tensors, {"format": made_for}):
            file.write(data)


def row_spans(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield where runs of rows begin and end that are worked on at once.

    A tensor without axes is one row.
    """
    count = max(1, CHUNK_ELEMENTS // max(1, prod(shape[1:])))
    rows = shape[0] if shape else 1
    for start in range(0, rows, count):
        yield start, min(start + count, rows)


def _rows(values: NDArray[Any], dtype: np.dtype[Any]) -> Chunks:
    rows = values if values.ndim else values.reshape(1)
    for start, stop in row_spans(rows.shape):
        yield rows[start:stop].astype(dtype, order="C", copy=False)


def _pieces(
    tensors: Sequence[Outgoing], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file in order."""
    yield _header(tensors, metadata)
    for tensor in tensors:
        written = 0
        for chunk in tensor.chunks():
            if chunk.dtype != number_type(tensor.dtype):
                raise ValueError(
                    f"{tensor.name}: a chunk of {chunk.dtype}, expected {tensor.dtype}"
                )
            # ml_dtypes arrays have no buffer of their own
            yield np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
            written += chunk.nbytes
        if written != tensor.nbytes:
            raise ValueError(f"{tensor.name}: {written} bytes of values, expected {tensor.nbytes}")


def _header(tensors: Sequence[Outgoing], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
