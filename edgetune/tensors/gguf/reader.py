"""Headers of GGUF files: metadata, and where each tensor lies, without reading one.

A little-endian file: ``GGUF``, a version (u32), the numbers of tensors and of metadata (u64);
then every key, its kind and its value; then every tensor's name, axes (the fastest first), type
and offset; then, from the next multiple of the alignment on, the tensors. A text is its length
(u64) and its bytes. Nothing of what a file claims is believed before it is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from edgetune.errors import ModelError
from edgetune.escapes import one_line, short
from edgetune.tensors.gguf.cursor import Cursor, damaged
from edgetune.tensors.gguf.metadata import Metadata, read_metadata
from edgetune.tensors.gguf.types import BY_ID, DEFAULT_ALIGNMENT, FLOATS, MAGIC, TensorType
from edgetune.tensors.header import StoredTensor

VERSIONS: Final = (2, 3)
MOST_TENSORS: Final = 1 << 17
MOST_AXES: Final = 4
LARGEST_SIZE: Final = 1 << 40
"""No axis of a tensor is near it."""
LARGEST_ALIGNMENT: Final = 1 << 20
_MXFP4_OF_OLLAMA: Final = 4
"""What Ollama 0.11 called MXFP4, for a while; llama.cpp's type of that number was gone before GGUF."""
_PLAIN: Final = {"F64": "float64", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
_DTYPES: Final = {**FLOATS, **_PLAIN}


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself; a tensor in blocks has its type's name as ``dtype``."""

    file: Path
    metadata: Metadata
    tensors: dict[str, StoredTensor]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as it is listed; ``offset`` is counted from where the tensors begin."""

    name: str
    shape: tuple[int, ...]
    kind: TensorType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of whole blocks."""
        return prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


def is_gguf(file: Path) -> bool:
    """Return whether a file begins as a GGUF file does."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(file: Path) -> GgufHeader:
    """Return the metadata and the tensors of a file.

    Raises:
        ModelError: if the file cannot be read, is cut short or contradicts itself.
    """
    try:
        with file.open("rb") as stream:
            cursor = Cursor(file, stream, file.stat().st_size)
            return _header(cursor)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from error


def _header(cursor: Cursor) -> GgufHeader:
    _check_version(cursor)
    tensors = cursor.count("tensors", MOST_TENSORS)
    metadata = read_metadata(cursor)
    entries = _entries(cursor, tensors)
    alignment = _alignment(cursor, metadata)
    base = -(-cursor.position // alignment) * alignment
    _check_layout(cursor, entries, base, alignment)
    stored = {
        entry.name: StoredTensor(
            cursor.file,
            entry.name,
            _DTYPES.get(entry.kind.name, entry.kind.name),
            entry.shape,
            base + entry.offset,
            base + entry.offset + entry.nbytes,
        )
        for entry in entries
    }
    return GgufHeader(cursor.file, metadata, stored)


def _check_version(cursor: Cursor) -> None:
    if cursor.take(len(MAGIC)) != MAGIC:
        raise ModelError(f"{cursor.file} is not a GGUF file: it does not begin with GGUF.")
    version = cursor.number("I")
    if version in VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise ModelError(f"{cursor.file} is a big-endian GGUF file; little-endian ones are read.")
    raise ModelError(
        f"{cursor.file} is a GGUF file of version {version}; versions 2 and 3 are read. "
        "Convert the model again with a llama.cpp of today."
    )


def _entries(cursor: Cursor, count: int) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        entry = _entry(cursor)
        if entry.name in entries:
            raise damaged(cursor.file, f"tensor {short(entry.name)} is listed twice")
        entries[entry.name] = entry
    return list(entries.values())


def _entry(cursor: Cursor) -> _Entry:
    name = cursor.text("the name of a tensor")
    axes = cursor.number("I")
    if not 1 <= axes <= MOST_AXES:
        raise damaged(cursor.file, f"tensor {short(name)} cannot have {axes} axes")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]
    number, offset = cursor.number("I"), cursor.number("Q")
    if not all(0 < size < LARGEST_SIZE for size in shape):
        raise damaged(cursor.file, f"tensor {short(name)} cannot have the shape {short(shape)}")
    if number == _MXFP4_OF_OLLAMA:
        raise ModelError(
            f"{cursor.file}: tensor {one_line(name)} is of type {number}, which Ollama 0.11 wrote for "
            "MXFP4, with its codes in another order. Pull the model again, or take another file of it."
        )
    if number not in BY_ID:
        raise ModelError(
            f"{cursor.file}: tensor {one_line(name)} is of type {number}, which is not known here. "
            "Take the model in another quantization, such as Q4_K_M or Q8_0."
        )
    kind = BY_ID[number]
    if shape[-1] % kind.block:
        raise damaged(
            cursor.file,
            f"rows of {shape[-1]} in tensor {short(name)} are no whole blocks of {kind.name}",
        )
    return _Entry(name, shape, kind, offset)


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    alignment = metadata.whole("general.alignment", DEFAULT_ALIGNMENT)
    if not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise damaged(cursor.file, f"tensors cannot be aligned to {alignment} bytes")
    return alignment


def _check_layout(cursor: Cursor, entries: list[_Entry], base: int, alignment: int) -> None:
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset % alignment:
            raise damaged(
                cursor.file,
                f"tensor {short(entry.name)} does not begin at a multiple of {alignment}",
            )
        if entry.offset < end:
            raise damaged(cursor.file, f"tensor {short(entry.name)} overlaps another tensor")
        end = entry.offset + entry.nbytes
        if base + end > cursor.size:
            raise damaged(
                cursor.file,
                f"tensor {short(entry.name)} ends at byte {base + end} of {cursor.size}",
            )
