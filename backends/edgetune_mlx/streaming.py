"""Frozen blocks that live on disk: read one at a time, dropped when they were used.

A block that is quantized, or had to be unpacked, is written once, when the model is opened, and
read back as it was stored; one in the checkpoint's own numbers is read from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import mlx.core as mx

from edgetune.owned import ScratchFolder
from edgetune_mlx.load import BlockWeights, Loader, load_arrays, save_arrays, scratch_folder
from edgetune_mlx.matrices import Matrix, Plain


class StreamedBlocks(Sequence[BlockWeights]):
    """The blocks of a model, read each time that one is asked for."""

    def __init__(self, loader: Loader) -> None:
        """Write blocks that the files have otherwise to a folder that is removed with this object."""
        self.loader = loader
        self._folder: ScratchFolder | None = None
        packed = loader.model.shape.published is not None
        if packed or not isinstance(loader.packing, Plain):
            self._folder = scratch_folder()
            for layer in range(len(self)):
                self._write(layer)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return self.loader.model.shape.layers

    @overload
    def __getitem__(self, layer: int) -> BlockWeights: ...
    @overload
    def __getitem__(self, layer: slice) -> list[BlockWeights]: ...
    def __getitem__(self, layer: int | slice) -> BlockWeights | list[BlockWeights]:
        """Read a block."""
        if isinstance(layer, slice):
            return [self[one] for one in range(len(self))[layer]]
        if not 0 <= layer < len(self):
            raise IndexError(layer)
        if self._folder is None:
            return self.loader.block(layer)
        return self._read(layer)

    def close(self) -> None:
        """Remove the written blocks."""
        if self._folder is not None:
            self._folder.close()

    def _file(self, layer: int) -> Path:
        assert self._folder is not None
        return self._folder.path / f"{layer}.safetensors"

    def _write(self, layer: int) -> None:
        block = self.loader.block(layer)
        arrays = {
            f"matrix/{role}/{name}": part
            for role, matrix in block.matrices.items()
            for name, part in matrix.parts.items()
        }
        for kind in ("biases", "norms", "norm_biases", "mixer", "routing"):
            arrays |= {f"{kind}/{role}": x for role, x in getattr(block, kind).items()}
        save_arrays(self._file(layer), arrays)

    def _read(self, layer: int) -> BlockWeights:
        block = BlockWeights()
        parts: dict[str, dict[str, mx.array]] = {}
        for name, x in load_arrays(self._file(layer)).items():
            kind, role, *part = name.split("/")
            if part:
                parts.setdefault(role, {})[part[0]] = x
            else:
                getattr(block, kind)[role] = x
        packing = self.loader.packing
        block.matrices = {role: Matrix(packing, found) for role, found in parts.items()}
        return block
