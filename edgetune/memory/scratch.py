"""Bytes of the buffers that products keep from one to the next (on processors)."""

from __future__ import annotations

from collections.abc import Collection

from edgetune.memory.batch_shape import PIECE, BatchShape
from edgetune.shape import Linear, ModelShape
from edgetune.storage import FILE_FORMAT, FLOAT32_BYTES, moved_in_files

HEAD_SLICE = 2048
"""Rows of the head that are multiplied at a time on a processor."""

ROWS = 256
"""Rows of an int8 matrix that are turned into numbers at a time."""

UNPACKED, UNPACKED_ON_CARD = 1 << 16, 1 << 20
"""Packed bytes that are unpacked at a time where no compiled code does it."""

UNBLOCKED = 1 << 20
"""Weights in the blocks of a GGUF file that are unpacked at a time."""


def scratch_bytes(
    shape: ModelShape,
    rows: BatchShape,
    quantization: str,
    head: str,
    *,
    frozen: Collection[Linear],
    trained_head: bool = False,
) -> int:
    """Return the bytes of all buffers once every product has been done.

    Each has its largest use: a matrix in the type of products, float32 values on their way there,
    indices of codes, a piece of inputs and of outputs. ``frozen`` are the projections that are
    multiplied with as they are stored; ``trained_head``: whether there is a float32 head.
    """
    if not rows.keeps_scratch:
        return 0
    height, width = min(HEAD_SLICE, shape.vocabulary), shape.hidden_size
    eighths, blocks = head == "int8", quantization == FILE_FORMAT
    narrowed = trained_head and rows.product < FLOAT32_BYTES
    matrix = height * width if eighths or rows.recast or blocks or narrowed else 0
    if shape.per_layer is not None and rows.recast:
        matrix = max(matrix, width * shape.per_layer.size)
    if shape.altup is not None and rows.recast:
        matrix = max(matrix, width * width)
    values = min(ROWS, height) * width if eighths else 0
    indices = moved = 0
    codes = min(UNBLOCKED, height * width) if blocks else 0
    if frozen:
        largest = max(linear.inputs * linear.outputs for linear in frozen)
        if quantization != "none" or rows.recast:
            matrix = max(matrix, largest)
        match quantization:
            case "int8":
                each = (min(ROWS, x.outputs) * x.inputs for x in frozen)
                values = max(values, *each)
            case "nf4":
                indices = min(UNPACKED, largest // 2)
                values = max(values, 2 * indices)
            case "gguf":
                codes = max(codes, min(UNBLOCKED, largest))
                moved = _moved(shape, frozen) * rows.product
    pieces = _widened(shape, rows, frozen)
    values = max(values, codes)
    if rows.product == FLOAT32_BYTES:
        values = 0  # they are made where the matrix is
    return matrix * rows.product + FLOAT32_BYTES * (values + indices) + codes + moved + pieces


def _moved(shape: ModelShape, frozen: Collection[Linear]) -> int:
    """Return how many numbers of blocks are unpacked at a time before their columns move."""
    moved = [
        max(x.inputs, min(UNBLOCKED, x.inputs * x.outputs))
        for kind in shape.kinds
        for x in kind.linears
        if x in frozen and moved_in_files(kind, x.role)
    ]
    return max(moved, default=0)


def _widened(shape: ModelShape, rows: BatchShape, frozen: Collection[Linear]) -> int:
    """Return the bytes of a piece of inputs and of outputs in the type of the product."""
    if not rows.upcast:
        return 0
    piece, sizes = min(PIECE, rows.tokens), [(0, 0)]
    if shape.per_layer is not None:
        sizes.append((piece * shape.hidden_size, piece * shape.per_layer.size))
    if shape.altup is not None:
        sizes.append((piece * shape.hidden_size, piece * shape.hidden_size))
    sizes += [(piece * x.inputs, piece * x.outputs) for x in frozen if x.expert is None]
    for kind in shape.kinds:
        if kind.experts is not None:
            some = min(PIECE, kind.experts.rows(rows.tokens))
            own = (x for x in kind.expert_linears if x in frozen)
            sizes += [(some * x.inputs, some * x.outputs) for x in own]
    return (max(size for size, _ in sizes) + max(size for _, size in sizes)) * rows.product
