"""A GGUF file about to be written: its metadata, and tensors made when their turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import CheckFailedError
from edgetune.exporters.gguf.experts import Content, KeptBlocks, TurnedMatrices
from edgetune.exporters.gguf.rows import Rows, Stacked
from edgetune.tensors.gguf.mxfp4 import NAME
from edgetune.tensors.gguf.quantize import quantized
from edgetune.tensors.gguf.types import BY_NAME, TensorType
from edgetune.tensors.gguf.writer import Metadata, OutgoingBlocks, file_bytes, write_gguf
from edgetune.tensors.writer import row_spans

_LARGEST: Final = {"F16": 65504.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """What a file holds; ``label`` says what kind it is, as file names do."""

    label: str
    metadata: Metadata
    tensors: tuple[OutgoingBlocks, ...]
    notes: tuple[str, ...] = ()

    def filename(self, name: str) -> str:
        """Return what a file of this kind is called, as is usual: ``name-Q4_K_M.gguf``."""
        return f"{name}-{self.label}.gguf"

    @property
    def context(self) -> int:
        """The longest context of the model in llama.cpp."""
        name = self.metadata["general.architecture"].content
        return int(self.metadata[f"{name}.context_length"].content)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return file_bytes(self.metadata, self.tensors)

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            CheckFailedError: if a number is not finite in the file's format.
        """
        write_gguf(path, self.metadata, self.tensors)


def outgoing(name: str, rows: Content, kind: TensorType) -> OutgoingBlocks:
    """Return a tensor of a file from its rows, or from blocks that stay what they are."""
    if isinstance(rows, KeptBlocks):
        kept = BY_NAME[NAME]
        return OutgoingBlocks(name=name, type=kept, shape=rows.shape, chunks=rows.chunks)
    chunks, shape = partial(_chunks, name, rows, kind), rows.shape
    if isinstance(rows, Stacked | TurnedMatrices):
        shape = (len(rows.parts), shape[0] // len(rows.parts), shape[1])
    return OutgoingBlocks(name=name, type=kind, shape=shape, chunks=chunks)


def _chunks(
    name: str, rows: Rows | TurnedMatrices, kind: TensorType
) -> Iterator[NDArray[np.uint8]]:
    for values in rows.runs() if isinstance(rows, TurnedMatrices) else _runs(rows):
        _require_finite(name, values, kind)
        yield quantized(values if values.ndim > 1 else values[None], kind)


def _runs(rows: Rows) -> Iterator[NDArray[np.float32]]:
    for start, stop in row_spans(rows.shape):
        yield rows.read(start, stop)


def _require_finite(name: str, values: NDArray[np.float32], kind: TensorType) -> None:
    largest = _LARGEST.get(kind.name, float(np.finfo(np.float32).max))
    if values.size and not (values.min() >= -largest and values.max() <= largest):
        raise CheckFailedError(
            f"{name} has values that are not finite in {kind.name}. Export with --quantize bf16; if "
            "that fails too, the base model or the adapter is damaged."
        )
