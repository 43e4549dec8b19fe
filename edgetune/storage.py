"""Bytes of numbers in each format: how the backends store weights and optimizer state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil
from typing import Final

from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.shape import BlockShape, ModelShape
from edgetune.tensors.gguf.types import BY_NAME

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

FLOAT32_BYTES = 4
"""Bytes of a float32: trained tensors, their gradients, logits, statistics."""

WEIGHT_BYTES = {
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "int8": 1.0,
    "q8": 1.0,
    "q4": 0.5,
    "mxfp4": 0.5 + 1 / 32,
    "nvfp4": 0.5 + 1 / 16,
}
"""Bytes a quantized weight takes, its scales included where they do not depend on the file's type.

NF4 (Dettmers 2023, section 3): blocks of 64 with 8-bit scales, which have one float32 for 256 of
them. int8: one float32 for a row, counted apart. MLX: q8 and q4 have groups of 64 with a scale and
a bias in the file's type, counted apart; mxfp4 groups of 32 and nvfp4 groups of 16 with an 8-bit
scale.
"""

AFFINE = frozenset({"q8", "q4"})
AFFINE_GROUP = 64
GROUPS = {"q8": AFFINE_GROUP, "q4": AFFINE_GROUP, "mxfp4": 32, "nvfp4": 16}
"""Inputs that share a scale, where rows of a matrix must be whole groups."""

QUANTIZED_OUTER = frozenset({"q8", "q4", "mxfp4", "nvfp4"})
"""Formats that MLX also stores embedding and head in."""

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw-8bit": 2.03, "paged-adamw-8bit": 2.03}
"""Bytes of optimizer state a trained parameter takes."""


FILE_FORMAT: Final = "gguf"
"""The format of a base whose file has its matrices in blocks: they are computed with as they are."""


def matrix_bytes(outputs: int, inputs: int, quantization: str, stored: int) -> int:
    """Return the bytes of a matrix (outputs, inputs) that the file has in ``stored`` bytes."""
    size = outputs * inputs
    if quantization == "none":
        return size * stored
    scales = FLOAT32_BYTES * outputs if quantization == "int8" else 0
    if quantization in AFFINE:
        scales = 2 * stored * -(-size // AFFINE_GROUP)
    return ceil(size * WEIGHT_BYTES[quantization]) + scales


def file_bytes(outputs: int, inputs: int, kind: str) -> int:
    """Return the bytes of a matrix in a type of GGUF files."""
    return outputs * BY_NAME[kind].row_bytes(inputs)


def linear_bytes(shape: ModelShape, layer: int, quantization: str) -> list[int]:
    """Return the bytes of each projection of a block."""
    if quantization == FILE_FORMAT and shape.formats is not None:
        kinds = shape.formats.matrices[layer]
        pairs = zip(shape.blocks[layer].matrices, kinds, strict=True)
        return [file_bytes(linear.outputs, linear.inputs, kind) for linear, kind in pairs]
    stored = BYTES[shape.dtype]
    matrices = shape.blocks[layer].matrices
    return [matrix_bytes(x.outputs, x.inputs, quantization, stored) for x in matrices]


def broken_rows(shape: ModelShape, quantization: str) -> int | None:
    """Return the inputs of a matrix that are not whole groups of a format, None if all are."""
    group = GROUPS.get(quantization, 1)
    inputs = {shape.hidden_size, *(linear.inputs for linear in shape.all_matrices)}
    return min((size for size in inputs if size % group), default=None)


def layer_counts(shape: ModelShape, quantization: str) -> Mapping[int, int]:
    """Return one layer of each kind that is stored in its own way, with how many there are."""
    return Counter(range(shape.layers) if quantization == FILE_FORMAT else shape.alike)


def blocks_bytes(shape: ModelShape, quantization: str) -> int:
    """Return the bytes of all blocks' frozen tensors."""
    return sum(
        count * (sum(linear_bytes(shape, layer, quantization)) + small_bytes(shape, layer))
        for layer, count in layer_counts(shape, quantization).items()
    )


def small_bytes(shape: ModelShape, layer: int) -> int:
    """Return the bytes of a block's norms and biases."""
    block = shape.blocks[layer]
    return (block.parameters - block.linear_parameters) * BYTES[shape.dtype]


def outer_bytes(shape: ModelShape, quantization: str) -> int:
    """Return the bytes of embedding, head, positions and final norm."""
    return sum(
        vocabulary_bytes(shape, quantization, tensor.kind)
        if tensor.kind in {"embedding", "head"}
        else tensor.size * BYTES[shape.dtype]
        for tensor in shape.outer_tensors()
    )


def table_bytes(shape: ModelShape) -> int:
    """Return the bytes of a table that stays in the model's file: rows of it are read."""
    tables = (tensor.size for tensor in shape.outer_tensors() if tensor.kind == "table")
    return sum(tables) * BYTES[shape.dtype]


def vocabulary_bytes(shape: ModelShape, quantization: str, which: str) -> int:
    """Return the bytes of the ``embedding`` or of the ``head``."""
    rows, width = shape.vocabulary, shape.hidden_size
    if quantization == FILE_FORMAT and shape.formats is not None:
        formats = shape.formats
        return file_bytes(rows, width, formats.embedding if which == "embedding" else formats.head)
    outer = quantization if quantization in QUANTIZED_OUTER else "none"
    return matrix_bytes(rows, width, outer, BYTES[shape.dtype])


def file_kinds_of(shape: ModelShape) -> frozenset[str]:
    """Return the types of a file's matrices, those of the vocabulary included."""
    formats = shape.formats
    if formats is None:
        return frozenset()
    inner = (kind for layer in formats.matrices for kind in layer)
    return frozenset(inner) | {formats.embedding, formats.head}


def file_kinds(shape: ModelShape) -> str:
    """Return the types of a file's projections, the most frequent first: ``Q4_K and Q6_K``."""
    layers = () if shape.formats is None else shape.formats.matrices
    kinds = Counter(kind for layer in layers for kind in layer)
    return " and ".join(kind for kind, _ in kinds.most_common())


def moved_in_files(block: BlockShape, role: str) -> bool:
    """Return whether GGUF files have the columns of a projection in another order.

    Those of Gated DeltaNet's output, where several heads of values share keys.
    """
    return role == "delta_out" and isinstance(block.mixer, GatedDelta) and block.mixer.shared > 1
