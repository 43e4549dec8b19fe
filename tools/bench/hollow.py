"""A model too large for the disk, of which only the cache of quantized blocks is real.

The matrices of its blocks are holes in sparse files. The cache that a run streams from is made of
draws in their place, so that every byte that a step reads is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import tensor_values, write_model

from edgetune.model import LocalModel, StoredTensor
from edgetune.shape import TensorShape
from edgetune.tensors.writer import Outgoing
from edgetune_torch.cache import build, cache_folder, cache_key
from edgetune_torch.pages import Files
from edgetune_torch.sources import Checkpoint

LARGE = 1 << 20
"""Numbers of a matrix that becomes a hole if it is one of a block's."""

STRIDE = 9973
"""Bytes by which the codes of a block are moved on from those of the one before."""


def write_hollow(name: str, folder: Path, changes: dict[str, Any]) -> Path:
    """Write the model of a profile, with holes for the large matrices of its blocks."""
    return write_model(name, folder, changes, write=_write)


def draw_cache(model: LocalModel, quantization: str, cache: Path) -> int:
    """Make the cache of quantized blocks from draws; return its size in bytes."""
    os.environ["EDGETUNE_CACHE"] = str(cache)
    path = cache_folder() / f"{cache_key(model, quantization)}.blocks"
    source = _Drawn(model, quantization, Files())
    build(path, source, model.shape.layers, source.files)
    return path.stat().st_size


class _Drawn(Checkpoint):
    """A checkpoint whose first block is drawn; the codes of others are those of it, moved on."""

    _first: torch.Tensor | None = None

    def read(self, layer: int, buffer: torch.Tensor) -> None:
        """Fill a buffer with a block; all are alike."""
        if self._first is None:
            super().read(0, buffer)
            self._first = buffer.clone()
        buffer.copy_(self._first)
        for fitting in self.layout(layer).fittings:
            if "codes" in fitting.places:
                codes = fitting.places["codes"].view(buffer)
                codes.copy_(codes.roll(STRIDE * layer))

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """Return a hole's draws, anything else as it is."""
        if not _hollow(stored.name, stored.shape):
            return super().tensor(stored)
        tensor = TensorShape(name=stored.name, shape=stored.shape, kind="linear")
        values = np.concatenate([part.view(np.int16) for part in tensor_values(tensor)])
        return torch.from_numpy(values).view(torch.bfloat16).view(stored.shape)


def _write(path: Path, tensors: Sequence[Outgoing]) -> None:
    header, end = {}, 0
    for tensor in tensors:
        nbytes = 2 * prod(tensor.shape)
        header[tensor.name] = {
            "dtype": "BF16", "shape": tensor.shape, "data_offsets": [end, end + nbytes],
        }  # fmt: skip
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        for tensor in tensors:
            if not _hollow(tensor.name, tensor.shape):
                file.seek(begin + header[tensor.name]["data_offsets"][0])
                for part in tensor.chunks():
                    file.write(part.tobytes())
        file.truncate(begin + end)


def _hollow(name: str, shape: tuple[int, ...]) -> bool:
    return ".layers." in name and prod(shape) >= LARGE
