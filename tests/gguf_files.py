"""GGUF files made for tests: whole ones by the ``gguf`` package, damaged ones byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.gguf.finite import HALVES, LARGEST_EXPONENT
from edgetune.tensors.gguf.types import BY_NAME


def random_blocks(kind: str, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return blocks (count, nbytes) with every bit drawn at random, but for scales: finite ones."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, BY_NAME[kind].nbytes), np.uint8)
    for place in HALVES.get(kind, ()):
        scales = rng.normal(size=(count, 1)).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(count, 2)
    if kind == "MXFP4":
        blocks[:, 0] %= LARGEST_EXPONENT + 1
    return blocks


def text(value: str | bytes) -> bytes:
    """Return a text as a file has it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    """Return one key of the metadata."""
    return text(key) + struct.pack("<I", kind) + value


def listed(name: str, axes: tuple[int, ...], kind: int, offset: int) -> bytes:
    """Return one tensor of the list, its axes as the file has them: the fastest first."""
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


def assembled(
    metadata: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """Return a file of these parts; ``counts`` is what it says of their numbers."""
    stated = counts or (len(tensors), len(metadata))
    header = magic + struct.pack("<IQQ", version, *stated) + b"".join(metadata + tensors)
    return header + b"\0" * (-len(header) % 32) + data


def write_gguf(
    file: Path,
    architecture: str,
    metadata: dict[str, Any],
    tensors: dict[str, tuple[NDArray[Any], str]],
    *,
    part: int = 0,
) -> Path:
    """Write a file by the ``gguf`` package: arrays with the names of their types.

    An array of bytes is blocks already, (rows, bytes of a row). With ``part`` it is cut into files
    of so many tensors, the first of which is returned.
    """
    import gguf

    writer = gguf.GGUFWriter(file, architecture, split_max_tensors=part)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, (values, kind) in tensors.items():
        wanted = gguf.GGMLQuantizationType[kind]
        blocks = values if values.dtype == np.uint8 else gguf.quants.quantize(values, wanted)
        writer.add_tensor(name, blocks, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(file.parent.glob(f"{file.stem}-*-of-*.gguf")) if part else file


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
