"""Bytes of the frozen weights that are on the device at one time, and of loading them."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory.scratch import HEAD_SLICE
from edgetune.shape import ModelShape
from edgetune.storage import (
    BYTES,
    FLOAT32_BYTES,
    QUANTIZED_OUTER,
    block_bytes,
    matrix_bytes,
    outer_bytes,
)

ALIGNMENT, PAGE = 64, 4096
"""Parts of a block's matrices begin at multiples of the one, blocks at those of the other."""

STREAMED_BLOCKS = 2
"""Blocks present when torch streams: the one that is computed and the one on its way."""


def weight_bytes(
    shape: ModelShape, quantization: str, placement: str, embedding: str, head: str, *, mlx: bool
) -> int:
    """Return the bytes of the frozen weights that are in the device's memory all the time.

    MLX reads a streamed block when it is computed and drops it then: :func:`passing_bytes`.
    """
    streamed = 0 if mlx else STREAMED_BLOCKS
    present = shape.layers if placement == "resident" else streamed
    return (
        present * _matrices(shape, quantization)
        + shape.layers * _small(shape) * BYTES[shape.dtype]
        + _vocabulary(shape, quantization, embedding, head)
    )


@dataclass(frozen=True, slots=True)
class TransientWeights:
    """Bytes of weights that are there only while a block is computed, by its halves."""

    attention: int = 0
    mlp: int = 0

    @property
    def whole(self) -> int:
        """Both halves."""
        return self.attention + self.mlp


def transient_bytes(
    shape: ModelShape, quantization: str, placement: str, *, mlx: bool
) -> TransientWeights:
    """Return what comes and goes with a block: all of it is read, and dropped after its use."""
    if not mlx or placement == "resident":
        return TransientWeights()
    whole = _matrices(shape, quantization)
    roles = {"gate", "up", "gate_up", "down"}
    mlp = sum(
        matrix_bytes(x.outputs, x.inputs, quantization, BYTES[shape.dtype])
        for x in shape.linears
        if x.role in roles
    )
    return TransientWeights(whole - mlp, mlp)


def _matrices(shape: ModelShape, quantization: str) -> int:
    """Return the bytes of a block's matrices."""
    matrices = block_bytes(shape, quantization) - _small(shape) * BYTES[shape.dtype]
    return matrices + ALIGNMENT * len(shape.linears) * 4 + PAGE


def _small(shape: ModelShape) -> int:
    """Return how many numbers of a block are in none of its matrices."""
    return sum(x.size for x in shape.block_tensors(0)) - shape.block_linear_parameters


def _vocabulary(shape: ModelShape, quantization: str, embedding: str, head: str) -> int:
    """Return the bytes of everything outside the blocks; a tied head is the embedding itself."""
    stored, matrix = BYTES[shape.dtype], shape.vocabulary * shape.hidden_size
    whole = outer_bytes(shape, quantization)
    outer = quantization if quantization in QUANTIZED_OUTER else "none"
    one = matrix_bytes(shape.vocabulary, shape.hidden_size, outer, stored)
    others = whole - one * (1 if shape.tied else 2)
    kept = one if embedding == "resident" else 0
    if head == "disk":
        return others + kept + 2 * HEAD_SLICE * shape.hidden_size * stored
    if head == "int8":
        return others + kept + matrix + FLOAT32_BYTES * shape.vocabulary
    shared = shape.tied and embedding == "resident"
    return others + kept + (0 if shared else one)


def load_bytes(shape: ModelShape, quantization: str) -> int:
    """Return the most bytes over the weights themselves while they are loaded.

    One projection as the file has it, and what quantizing it takes beside it; everything else
    goes from the mapped file to its place. MLX's formats take the embedding, too.
    """
    sizes = [linear.inputs * linear.outputs for linear in shape.linears]
    if quantization in QUANTIZED_OUTER:
        sizes.append(shape.vocabulary * shape.hidden_size)
    matrix = max(sizes)
    scales = 0 if quantization == "none" else 4 * matrix // 64
    return matrix * BYTES[shape.dtype] + scales
