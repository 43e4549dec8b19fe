"""Experts as a file has them: a tensor for each projection with the matrices of all of them.

Gate and up that a model has in one projection, in turn (gpt-oss), are two. Matrices in MX FP4 keep
their codes: no other format has as few bits and the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetune.exporters.gguf.rows import MergedRows, Reordered, Rows, Stacked, Vectors
from edgetune.model import StoredTensor
from edgetune.model.gguf_names import EXPERTS, GATE_AND_UP
from edgetune.shape import BlockShape, Linear
from edgetune.tensors.gguf.mxfp4 import is_mxfp4, mxfp4_rows
from edgetune.tensors.writer import row_spans

Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class KeptBlocks:
    """Matrices of all experts in MX FP4, as their files have them; ``order`` names rows of each."""

    parts: tuple[StoredTensor, ...]
    order: Order
    inputs: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Experts, outputs, inputs."""
        return len(self.parts), len(self.order), self.inputs

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the blocks of one expert after the other.

        Raises:
            ModelError: if a scale is not a number, or a file ends early.
        """
        for stored in self.parts:
            yield np.ascontiguousarray(mxfp4_rows(stored)[self.order])


@dataclass(frozen=True, slots=True)
class TurnedMatrices:
    """Matrices of all experts that are stored (inputs, outputs); ``order`` names outputs of each.

    By outputs they are columns, for any of which the whole matrix has to be read.
    """

    parts: tuple[Rows, ...]
    order: Order

    @property
    def shape(self) -> tuple[int, int]:
        """The outputs of all, inputs."""
        return len(self.parts) * len(self.order), self.parts[0].shape[0]

    def runs(self) -> Iterator[NDArray[np.float32]]:
        """Yield the outputs in runs; each matrix is read once, and held meanwhile."""
        for part in self.parts:
            turned = part.read(0, part.shape[0])[:, self.order].T
            for start, stop in row_spans(turned.shape):
                yield np.ascontiguousarray(turned[start:stop])


Content: TypeAlias = Rows | KeptBlocks | TurnedMatrices
"""What a tensor of a file is written from."""


def expert_tensors(
    block: BlockShape, source: Callable[[str], Rows], prefix: str, target: str
) -> Iterator[tuple[str, Content]]:
    """Yield the tensors of a block's experts by their names in the file."""
    by_name: dict[str, list[tuple[Linear, Order]]] = {}
    for linear in block.expert_linears:
        for role, order in _halves(linear):
            by_name.setdefault(f"{target}{EXPERTS[role]}", []).append((linear, order))
    for name, each in by_name.items():
        weights = [source(f"{prefix}{linear.module}.weight") for linear, _ in each]
        yield f"{name}.weight", _together(weights, *each[0])
        if each[0][0].bias:
            biases = [source(f"{prefix}{linear.module}.bias") for linear, _ in each]
            yield f"{name}.bias", Vectors(tuple(Reordered(x, each[0][1]) for x in biases))


def _halves(linear: Linear) -> Iterator[tuple[str, Order]]:
    """Yield the roles that a file has of an expert's projection, each with its rows."""
    if linear.role != "gate_up":
        yield linear.role, np.arange(linear.outputs)
        return
    for place, role in enumerate(GATE_AND_UP):
        yield role, np.arange(place, linear.outputs, len(GATE_AND_UP))


def _together(weights: list[Rows], linear: Linear, order: Order) -> Content:
    kept = [x.stored for x in weights if isinstance(x, MergedRows) and x.change is None]
    if len(kept) == len(weights) and all(map(is_mxfp4, kept)):
        return KeptBlocks(tuple(kept), order, linear.inputs)
    if linear.transposed:
        return TurnedMatrices(tuple(weights), order)
    if len(order) < linear.outputs:
        return Stacked(tuple(Reordered(x, order) for x in weights))
    return Stacked(tuple(weights))
