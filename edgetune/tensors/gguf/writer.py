"""GGUF files of any size, written tensor by tensor as their bytes come.

A file is its head (magic, version, counts, metadata, where each tensor lies), filled up to the
alignment, then the tensors, each filled up as well. The head is made from names, types and shapes
alone, so that the data follows it without ever being held.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.gguf.types import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    STRING,
    VALUE_TYPES,
    VERSION,
    TensorType,
    ValueType,
)

Bytes = NDArray[np.uint8]

_KINDS: Final[Mapping[str, ValueType]] = {kind.name: kind for kind in VALUE_TYPES.values()}


@dataclass(frozen=True, slots=True)
class Value:
    """A value of metadata: ``kind`` is a name of ``VALUE_TYPES``; of a list, that of its items."""

    kind: str
    content: Any

    @property
    def encoded(self) -> bytes:
        """The value as it stands in a file, its type first."""
        kind = _KINDS[self.kind]
        if not isinstance(self.content, list):
            return _uint32(kind.id) + _encoded(kind, [self.content])
        head = _uint32(ARRAY.id) + _uint32(kind.id) + _uint64(len(self.content))
        return head + _encoded(kind, self.content)


Metadata = Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingBlocks:
    """A tensor to be written: ``shape`` has the length of a row last, as numpy has it.

    ``chunks`` makes the bytes of its rows, in order, when their turn comes.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[Bytes]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without what they are filled up with."""
        return prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


def write_gguf(path: Path, metadata: Metadata, tensors: Sequence[OutgoingBlocks]) -> None:
    """Write one file, over what may be there; the caller sees to it that it is whole or gone.

    Raises:
        ValueError: if the chunks of a tensor are not as many bytes as its shape and type take.
        OSError: if the file cannot be written.
    """
    with path.open("wb") as file:
        file.write(_head(metadata, tensors))
        for tensor in tensors:
            written = 0
            for chunk in tensor.chunks():
                file.write(chunk.data)
                written += chunk.nbytes
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes, expected {tensor.nbytes}")
            file.write(_filler(written))


def file_bytes(metadata: Metadata, tensors: Sequence[OutgoingBlocks]) -> int:
    """Return how large a file becomes."""
    return len(_head(metadata, tensors)) + sum(_aligned(tensor.nbytes) for tensor in tensors)


def _head(metadata: Metadata, tensors: Sequence[OutgoingBlocks]) -> bytes:
    parts = [MAGIC, _uint32(VERSION), _uint64(len(tensors)), _uint64(len(metadata))]
    parts += [_string(key) + value.encoded for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        axes = [_uint64(size) for size in reversed(tensor.shape)]
        parts += [_string(tensor.name), _uint32(len(axes)), *axes]
        parts += [_uint32(tensor.type.id), _uint64(offset)]
        offset += _aligned(tensor.nbytes)
    head = b"".join(parts)
    return head + _filler(len(head))


def _encoded(kind: ValueType, items: Sequence[Any]) -> bytes:
    if kind is STRING:
        return b"".join(map(_string, items))
    return struct.pack(f"<{len(items)}{kind.code}", *items)


def _string(text: str) -> bytes:
    data = text.encode()
    return _uint64(len(data)) + data


def _uint32(number: int) -> bytes:
    return struct.pack("<I", number)


def _uint64(number: int) -> bytes:
    return struct.pack("<Q", number)


def _aligned(size: int) -> int:
    return size + -size % DEFAULT_ALIGNMENT


def _filler(size: int) -> bytes:
    return bytes(-size % DEFAULT_ALIGNMENT)
