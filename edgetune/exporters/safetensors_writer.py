"""Safetensors files of any size, written tensor by tensor as the values come.

The header is made from names, number formats and shapes alone, so that the data follows it
without ever being held: an 8-byte little-endian length, JSON padded with spaces to a multiple
of 8, the bytes of all tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters.stored import number_type

_CODES: Final[Mapping[str, str]] = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "uint16": "U16", "int16": "I16", "float16": "F16",
    "bfloat16": "BF16", "uint32": "U32", "int32": "I32", "float32": "F32", "uint64": "U64",
    "int64": "I64", "float64": "F64",
}  # fmt: skip

Chunks = Iterator[NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A tensor to be written; ``chunks`` makes its values, in order, when their turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Chunks]

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return number_type(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.width


def write_safetensors(path: Path, tensors: Sequence[Outgoing]) -> None:
    """Write one file with its widest number formats first, so that every tensor is aligned.

    Raises:
        ValueError: if the chunks of a tensor are not of its size and number format.
    """
    ordered = sorted(tensors, key=lambda tensor: -tensor.width)
    with path.open("wb") as file:
        file.write(_header(ordered))
        for tensor in ordered:
            _write_values(file, tensor)


def _header(tensors: Sequence[Outgoing]) -> bytes:
    # transformers reads the framework from here
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
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


def _write_values(file: IO[bytes], tensor: Outgoing) -> None:
    written = 0
    for chunk in tensor.chunks():
        if chunk.dtype != number_type(tensor.dtype):
            raise ValueError(f"{tensor.name}: a chunk of {chunk.dtype}, expected {tensor.dtype}")
        # ml_dtypes arrays have no buffer of their own
        file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
        written += chunk.nbytes
    if written != tensor.nbytes:
        raise ValueError(f"{tensor.name}: {written} bytes of values, expected {tensor.nbytes}")
