"""Quantized weights kept on disk: a second start is one sequential read, and blocks can be
streamed from it.

One file a model and format, in ``$EDGETUNE_CACHE``, else ``$XDG_CACHE_HOME/edgetune``, else
``~/.cache/edgetune``: it is shared by all runs of a model, which is why it does not lie beside a
run. The file holds the blocks one after the other, each laid out as in memory, then a JSON footer
and the footer's length as a little-endian u64. Its name is a hash of everything that its content
depends on, which the footer repeats. It is written to a temporary name that is drawn at random and
renamed, so that processes that begin together, of whichever machine, do not write into each
other's file. Any file here may be deleted at any time: who uses one holds it open.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.errors import DiskError, ModelError
from edgetune.files import parsed_json, sha256_json
from edgetune.model import LocalModel
from edgetune.owned import replacing_shared, sweep
from edgetune.units import format_bytes
from edgetune_torch.layout import Layout
from edgetune_torch.pages import Extent, Files, bytes_of
from edgetune_torch.sources import BlockSource

VERSION = 2
"""Raised whenever the same weights would be written as other bytes."""


def cache_folder() -> Path:
    """Return where quantized weights are kept."""
    if chosen := os.environ.get("EDGETUNE_CACHE"):
        return Path(chosen) / "weights"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgetune" / "weights"


ELSEWHERE = "set EDGETUNE_CACHE to a folder elsewhere"


def cache_key(model: LocalModel, quantization: str) -> str:
    """Return the hash of everything that the cached bytes depend on.

    A model's weights are known by its fingerprint, and by the size and the time of the last change
    of each of its files. The time alone does not tell: archives and images set it to one value.
    """
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in model.files]
    return sha256_json([VERSION, model.fingerprint, quantization, stats])[:32]


@dataclass(frozen=True, slots=True)
class WeightsCache:
    """An opened cache file; a block is checked when it is read for the first time."""

    path: Path
    layouts: tuple[Layout, ...]
    sums: tuple[int, ...]
    files: Files
    _checked: set[int] = field(default_factory=set)

    def layout(self, layer: int) -> Layout:
        """Return how a block lies in its buffer."""
        return self.layouts[layer]

    def read(self, layer: int, buffer: Tensor) -> None:
        """Fill a buffer with a block; see :class:`edgetune_torch.sources.BlockSource`.

        Raises:
            ModelError: if the file is damaged or gone.
        """
        start = sum(layout.nbytes for layout in self.layouts[:layer])
        memory = bytes_of(buffer)[: self.layouts[layer].nbytes]
        self.files.read(Extent(self.path, start, len(memory)), memory)
        if layer not in self._checked:
            if zlib.crc32(memory) != self.sums[layer]:
                raise ModelError(f"{self.path} is damaged. Delete it: it is made anew.")
            self._checked.add(layer)


def find(path: Path, source: BlockSource, layers: int, files: Files) -> WeightsCache | None:
    """Return the cache if it is there and whole; what does not fit is taken as absent."""
    try:
        descriptor = files.hold(path)
    except OSError:
        return None
    return _opened(path, descriptor, source, layers, files)


def _opened(
    path: Path, descriptor: int, source: BlockSource, layers: int, files: Files
) -> WeightsCache | None:
    layouts = tuple(source.layout(layer) for layer in range(layers))
    footer = _footer(descriptor)
    expected = {"key": path.stem, "bytes": sum(layout.nbytes for layout in layouts)}
    if footer is None or any(footer.get(name) != value for name, value in expected.items()):
        return None
    sums = footer.get("sums")
    if not isinstance(sums, list) or len(sums) != layers:
        return None
    return WeightsCache(path, layouts, tuple(sums), files)


class CacheWriter:
    """Writes a cache block by block; use as ``with replacing_shared(path) as temporary``."""

    def __init__(self, path: Path, key: str) -> None:
        """Begin a file."""
        self._file = path.open("wb", buffering=0)
        self._key = key
        self._sums: list[int] = []

    def append(self, block: Tensor) -> None:
        """Write the next block."""
        memory = bytes_of(block)
        self._sums.append(zlib.crc32(memory))
        self._write(memory)

    def finish(self) -> None:
        """Write the footer and close the file."""
        facts = {"key": self._key, "bytes": self._file.tell(), "sums": self._sums}
        footer = json.dumps(facts).encode()
        self._write(memoryview(footer + len(footer).to_bytes(8, "little")))
        self._file.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def _write(self, memory: memoryview) -> None:
        done = 0
        while done < len(memory):
            done += self._file.write(memory[done:]) or 0


def room_for(path: Path, nbytes: int) -> bool:
    """Return whether the disk has room for a cache, and as much again for everything else.

    Raises:
        OSError: if there is no folder for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    return shutil.disk_usage(path.parent).free >= 2 * nbytes


def build(
    path: Path,
    source: BlockSource,
    layers: int,
    files: Files,
    blocks: list[Tensor] | None = None,
) -> WeightsCache | None:
    """Write the cache and return it; with ``blocks``, fill these buffers with the same bytes.

    It can be read even if somebody deletes it the moment that it is there. None if it cannot be
    held while it is renamed, as on Windows.

    Raises:
        DiskError: if the disk has no room.
        OSError: if the file cannot be written; nothing of it stays then.
    """
    nbytes = sum(source.layout(layer).nbytes for layer in range(layers))
    if not room_for(path, nbytes):
        raise DiskError(
            f"The quantized weights take {format_bytes(nbytes)} in {path.parent}, and its disk has "
            f"less than twice that free. Make room, or {ELSEWHERE}."
        )
    made = None
    try:
        with replacing_shared(path) as temporary:
            _write(temporary, path.stem, source, layers, blocks)
            if os.name != "nt":
                made = _opened(path, files.hold(path, temporary), source, layers, files)
    except FileNotFoundError:  # the folder was deleted, which is allowed
        if made is None:
            raise
    return made


def _write(
    path: Path, key: str, source: BlockSource, layers: int, blocks: list[Tensor] | None
) -> None:
    import torch

    writer, scratch = CacheWriter(path, key), None
    try:
        for layer in range(layers):
            size = source.layout(layer).nbytes
            if blocks is not None:
                buffer = blocks[layer]
            else:
                scratch = torch.zeros(size, dtype=torch.uint8) if scratch is None else scratch
                buffer = scratch[:size]
            source.read(layer, buffer)
            writer.append(buffer)
        writer.finish()
    finally:
        writer.close()


def _footer(descriptor: int) -> dict[str, Any] | None:
    """Return the footer, or None if there is no whole file."""
    try:
        with open(descriptor, "rb", closefd=False) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 8))
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(end - 8, 1 << 20):
                return None
            start = file.seek(end - 8 - length)
            footer = parsed_json(file.read(length))
    except (OSError, ValueError):
        return None
    return footer if isinstance(footer, dict) and footer.get("bytes") == start else None
