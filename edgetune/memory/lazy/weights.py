"""The frozen tensors of a block on MLX: there all the time, or read for each pass of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.lazy.graph import Array, Operation, given
from edgetune.memory.lazy.matrices import Decoded, Format, Matrix, Plain, Sequencer, Unpacked
from edgetune.shape import ModelShape
from edgetune.storage import (
    AFFINE,
    FILE_FORMAT,
    FLOAT32_BYTES,
    GROUPS,
    QUANTIZED_OUTER,
    linear_bytes,
    moved_in_files,
    vocabulary_bytes,
)


@dataclass(frozen=True, slots=True)
class FrozenBlock:
    """What a block computes with that is not trained."""

    stored: int
    """Bytes a number of norms and biases."""
    matrices: dict[str, Matrix] = field(default_factory=dict)

    def tensor(self, shape: tuple[int, ...]) -> Array:
        """Return a small tensor."""
        return given(shape, self.stored)

    def vector(self, size: int) -> Array:
        """Return a vector of a norm or a bias."""
        return given((size,), self.stored)

    @property
    def parts(self) -> list[Array]:
        """The arrays of all matrices."""
        return [part for matrix in self.matrices.values() for part in matrix.parts]


def frozen_block(
    shape: ModelShape, layer: int, rows: BatchShape, quantization: str, *, streamed: bool
) -> FrozenBlock:
    """Return a block's tensors; if ``streamed``, its matrices are read when they are needed."""
    block, found = shape.blocks[layer], FrozenBlock(rows.stored)
    sizes: dict[str, tuple[int, int, int]] = {}
    kinds = zip(block.matrices, linear_bytes(shape, layer, quantization), strict=True)
    for linear, nbytes in kinds:  # those of all experts are one
        role = linear.role if linear.expert is None else f"experts.{linear.role}"
        outputs, _, before = sizes.get(role, (0, 0, 0))
        sizes[role] = (outputs + linear.outputs, linear.inputs, before + nbytes)
    sequencer = Sequencer()
    for role, (outputs, inputs, nbytes) in sizes.items():
        form = _format(rows, quantization, moved=moved_in_files(block, role))
        each = _parts(outputs, inputs, nbytes, rows, quantization)
        parts = tuple(_read(*part) if streamed else given(*part) for part in each)
        found.matrices[role] = Matrix(form, parts, (outputs, inputs), sequencer)
    return found


def frozen_head(shape: ModelShape, rows: BatchShape, quantization: str) -> Matrix:
    """Return the output projection (V, D) as it is stored, which is there all the time."""
    outer = quantization if quantization in {FILE_FORMAT, *QUANTIZED_OUTER} else "none"
    sizes = shape.vocabulary, shape.hidden_size
    parts = _parts(*sizes, vocabulary_bytes(shape, outer, "head"), rows, outer)
    arrays = tuple(given(*part) for part in parts)
    return Matrix(_format(rows, outer), arrays, sizes, Sequencer())


def trained_head(shape: ModelShape, rows: BatchShape) -> Matrix:
    """Return an output projection (V, D) that is trained, in float32."""
    sizes = shape.vocabulary, shape.hidden_size
    form = Plain(makes_numbers=rows.width != FLOAT32_BYTES)
    return Matrix(form, (given(sizes, FLOAT32_BYTES),), sizes, Sequencer())


def alike(rows: BatchShape, quantization: str, *, streamed: bool) -> tuple[BatchShape, str]:
    """Return rows and a quantization whose passes of a block take the same memory.

    Matrices that are multiplied as they lie are alike where they are there all the time.
    """
    rows = replace(rows, dense=False)
    if streamed or _format(rows, quantization).makes_numbers:
        return rows, quantization
    return replace(rows, recast=False, unpacking=0.0), "none"


def _format(rows: BatchShape, quantization: str, *, moved: bool = False) -> Format:
    if quantization == FILE_FORMAT:
        return Decoded(rows.unpacking, moved)
    if quantization != "none" and rows.unpacks:
        return Unpacked(quantization, rows.stored)
    return Plain(makes_numbers=quantization == "none" and rows.recast)


def _parts(
    outputs: int, inputs: int, nbytes: int, rows: BatchShape, quantization: str
) -> Sequence[tuple[tuple[int, ...], int]]:
    """Return shape and bytes a number of the arrays of a matrix."""
    if quantization == "none":
        return [((outputs, inputs), rows.stored)]
    if quantization == FILE_FORMAT:
        return [((outputs, nbytes // outputs), 1)]
    bits = 8 if quantization == "q8" else 4
    codes = ((outputs, inputs * bits // 8), 1)
    groups = (outputs, inputs // GROUPS[quantization])
    affine = quantization in AFFINE
    return [codes, *[(groups, rows.stored if affine else 1)] * (1 + affine)]


def _read(shape: tuple[int, ...], width: int) -> Array:
    return Array(shape, width, Operation((), nbytes=prod(shape) * width))
