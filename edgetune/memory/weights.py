"""Bytes of the frozen weights that are on the device at one time, and of loading them."""

from __future__ import annotations

from math import ceil

from edgetune.memory.scratch import HEAD_SLICE
from edgetune.shape import ModelShape
from edgetune.storage import (
    BYTES,
    FILE_FORMAT,
    FLOAT32_BYTES,
    QUANTIZED_OUTER,
    blocks_bytes,
    layer_counts,
    linear_bytes,
    outer_bytes,
    small_bytes,
    table_bytes,
    vocabulary_bytes,
)

ALIGNMENT, PAGE = 64, 4096
"""Parts of a block's matrices begin at multiples of the one, blocks at those of the other."""

STREAMED_BLOCKS = 2
"""Blocks present when torch streams: the one that is computed and the one on its way."""


def weight_bytes(
    shape: ModelShape, quantization: str, placement: str, embedding: str, head: str, *, lazy: bool
) -> int:
    """Return the bytes of the frozen weights that are in the device's memory all the time.

    MLX reads a streamed block when it is computed: its passes count the matrices, and the small
    tensors of one block are there.
    """
    outer, layers = _vocabulary(shape, quantization, embedding, head), range(shape.layers)
    if placement == "resident":
        padding = 0 if lazy else sum(_padding(shape, layer) for layer in layers)
        return outer + blocks_bytes(shape, quantization) + padding
    small = [small_bytes(shape, layer) for layer in layers]
    if lazy:
        return outer + max(small)
    return outer + sum(small) + STREAMED_BLOCKS * _largest(shape, quantization)


def read_bytes(shape: ModelShape, quantization: str, placement: str, *, lazy: bool) -> int:
    """Return the bytes of a block that MLX reads and writes while a streamed model is opened."""
    return _largest(shape, quantization) if lazy and placement != "resident" else 0


def _matrices(shape: ModelShape, layer: int, quantization: str) -> int:
    """Return the bytes of a block's matrices, with those between their parts."""
    return sum(linear_bytes(shape, layer, quantization)) + _padding(shape, layer)


def _largest(shape: ModelShape, quantization: str) -> int:
    """Return the bytes of the matrices of the largest block."""
    layers = layer_counts(shape, quantization)
    return max(_matrices(shape, layer, quantization) for layer in layers)


def _padding(shape: ModelShape, layer: int) -> int:
    """Return the bytes between the parts of a block's matrices."""
    return ALIGNMENT * len(shape.blocks[layer].matrices) * 4 + PAGE


def _vocabulary(shape: ModelShape, quantization: str, embedding: str, head: str) -> int:
    """Return the bytes of everything outside the blocks; a tied head is the embedding itself."""
    table = vocabulary_bytes(shape, quantization, "embedding")
    rows = vocabulary_bytes(shape, quantization, "head")
    others = outer_bytes(shape, quantization) - table_bytes(shape) - table
    others -= 0 if shape.tied else rows
    kept = table if embedding == "resident" else 0
    if head == "disk":
        return others + kept + 2 * HEAD_SLICE * (rows // shape.vocabulary)
    if head == "int8":
        matrix = shape.vocabulary * shape.hidden_size
        return others + kept + matrix + FLOAT32_BYTES * shape.vocabulary
    shared = shape.tied and embedding == "resident"
    return others + kept + (0 if shared else rows)


def load_bytes(shape: ModelShape, quantization: str) -> int:
    """Return the most bytes over the weights themselves while they are loaded.

    One projection as the file has it, and what quantizing it takes beside it; everything else
    goes from the mapped file to its place. MLX's formats take the embedding, too. What is in blocks
    is read once more at most; looking for scales that are no numbers takes two bytes a block. A
    quantized checkpoint is unpacked some numbers at a time.
    """
    if quantization == FILE_FORMAT:
        layers = range(shape.layers)
        largest = max(max(linear_bytes(shape, layer, quantization)) for layer in layers)
        outer = (vocabulary_bytes(shape, quantization, name) for name in ("embedding", "head"))
        return ceil(max(largest, *outer) * 1.1)
    sizes = [linear.inputs * linear.outputs for linear in shape.all_matrices]
    if quantization in QUANTIZED_OUTER:
        sizes.append(shape.vocabulary * shape.hidden_size)
    matrix = max(sizes)
    scales = 0 if quantization == "none" else 4 * matrix // 64
    unpacking = 0 if shape.published is None else shape.published.unpacking_bytes
    return matrix * BYTES[shape.dtype] + scales + unpacking
