"""Opening a file whether or not it is compressed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib import import_module
from io import BufferedReader, RawIOBase
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from edgetune.errors import DataError

PACKED = (".gz", ".zst")
_BLOCK = 1 << 10  # small, because a few bytes can unpack to 128 KiB
_WINDOW = 1 << 27


def unpacked(name: str, stream: BufferedReader) -> BufferedReader:
    """Return the content of an open file of this name.

    Raises:
        DataError: if it is compressed in a way that needs a package which is not installed.
    """
    match Path(name).suffix.lower():
        case ".gz":
            return BufferedReader(cast("Any", gzip.GzipFile(fileobj=stream)))
        case ".zst":
            return stream_of(_unpacked(stream, needed("zstandard")))
        case _:
            return stream


def stream_of(blocks: Iterator[bytes]) -> BufferedReader:
    """Return blocks of bytes, one after another, as a stream."""
    return BufferedReader(_Blocks(blocks))


def needed(package: str) -> ModuleType:
    """Return an optional package.

    Raises:
        DataError: saying how to install it, if it is missing.
    """
    try:
        return import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise DataError(
            f"It needs the package {name}: pip install {name}, or convert the file."
        ) from error


def _unpacked(stream: BufferedReader, zstandard: ModuleType) -> Iterator[bytes]:
    """Yield the content of a zst file; unlike its own reader, refuse one that was cut off."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    try:
        while block := stream.read(_BLOCK):
            while block:  # a file can be several frames, one after another
                if unpacker.eof:
                    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
                yield unpacker.decompress(block)
                block = unpacker.unused_data
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
    if not unpacker.eof:
        raise EOFError("the compressed data was cut off")


class _Blocks(RawIOBase):
    """Blocks of bytes as a stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)  # taken from without copying the rest
        count = min(len(target), len(self._left))
        target[:count], self._left = self._left[:count], self._left[count:]
        return count
