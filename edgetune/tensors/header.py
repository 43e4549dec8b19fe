"""Headers of safetensors files: where each tensor lies, without reading one whole.

A file is a little-endian u64 with the length of a JSON header, the header, then the bytes of
all tensors without gaps. Nothing of what a header claims is believed before it is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, TypeGuard

from edgetune.errors import ModelError
from edgetune.escapes import short

LONGEST_HEADER: Final = 1 << 24
"""Bytes: room for a hundred thousand tensors, and little enough to parse whatever it holds."""

MOST_AXES: Final = 16
LARGEST_SIZE: Final = 1 << 60
"""No axis and no offset is near it; products of what is above take forever."""

TYPES: Final[Mapping[str, tuple[str, int]]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
"""What a header calls a number format, to its name here and the bytes of a number."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies; ``start`` and ``end`` are bytes from the beginning of the file."""

    file: Path
    name: str
    """The tensor's name in the file."""
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return self.end - self.start

    @property
    def read_dtype(self) -> str:
        """Number format of the values that reading gives."""
        return self.dtype


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name.

    Raises:
        ModelError: if the file cannot be read, is cut short or contradicts itself.
    """
    text, size = _text(file)
    tensors = _parse(file, text, 8 + len(text))
    _check_layout(file, tensors, 8 + len(text), size)
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """Return what a file says of itself beside its tensors.

    Raises:
        ModelError: if the file cannot be read, is cut short or contradicts itself.
    """
    found = _entries(file, _text(file)[0]).get("__metadata__")
    told = found if isinstance(found, dict) else {}
    return {name: value for name, value in told.items() if isinstance(value, str)}


def _text(file: Path) -> tuple[bytes, int]:
    """Return a file's header and the size of the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise _damaged(file, f"its header cannot be {length} bytes long")
            return stream.read(length), size
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from error


def _entries(file: Path, text: bytes) -> dict[str, object]:
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not valid ({error})") from error
    if not isinstance(entries, dict):
        raise _damaged(file, "its header is not a JSON object")
    return entries


def _parse(file: Path, text: bytes, base: int) -> dict[str, StoredTensor]:
    entries = _entries(file, text)
    if not isinstance(entries.pop("__metadata__", None), dict | None):  # MLX writes null
        raise _damaged(file, "its __metadata__ is not a JSON object")
    return {name: _entry(file, name, value, base) for name, value in entries.items()}


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _entry(file: Path, name: str, entry: object, base: int) -> StoredTensor:
    found = entry if isinstance(entry, dict) else {}
    shape, offsets = found.get("shape"), found.get("data_offsets")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise _damaged(file, f"tensor {short(name)} has no valid shape and offsets")
    written = found.get("dtype")
    if not isinstance(written, str) or written not in TYPES:
        raise ModelError(
            f"{file}: tensor {short(name)} is of unknown type {short(written)}. "
            f"Known: {', '.join(TYPES)}."
        )
    dtype, width = TYPES[written]
    start, end = offsets
    if end - start != prod(shape) * width:
        raise _damaged(file, f"tensor {short(name)} of shape {shape} cannot be {end - start} bytes")
    return StoredTensor(file, name, dtype, tuple(shape), base + start, base + end)


def _sizes(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= MOST_AXES
        and all(type(item) is int and 0 <= item < LARGEST_SIZE for item in value)
    )


def _check_layout(file: Path, tensors: dict[str, StoredTensor], base: int, size: int) -> None:
    position = base
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            kind = "overlaps another tensor" if tensor.start < position else "follows a gap"
            raise _damaged(file, f"tensor {short(tensor.name)} {kind}")
        position = tensor.end
    if position != size:
        raise _damaged(file, f"it should be {position} bytes long and is {size}")


def _damaged(file: Path, because: str) -> ModelError:
    return ModelError(f"{file} is damaged: {because}. Fetch or copy the file again.")
