"""FP8: eight-bit floats with scales for blocks, rows or whole matrices.

DeepSeek's and Qwen's files have ``weight_scale_inv`` for 128x128 weights, Mistral's one number a
matrix, Meta's and AutoFP8's ``weight_scale`` for rows or matrices. All are multiplied with.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

from edgetune.model.published.assembly import Assembly
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import ScaledTensor

_FLOATS: Final = ("float8_e4m3fn", "float8_e5m2")
_SCALES: Final = ("_scale_inv", "_scale")
_SCALE_TYPES: Final = ("float32", "bfloat16", "float16", "uint8", "float8_e8m0fnu")
_UNUSED: Final = (
    ".activation_scale", "_activation_scale", ".input_scale", ".output_scale", ".k_scale",
    ".v_scale", ".kv_scale", ".q_scale", ".input_scale_ub",
)  # fmt: skip
"""Scales of activations and of cached keys: nothing here rounds these."""

Block = tuple[int, int]


def assemble_fp8(
    assembly: Assembly,
    settings: Mapping[str, object],
    config: Mapping[str, object],  # noqa: ARG001
) -> None:
    """Put all eight-bit floats together with their scales."""
    block = block_of(settings.get("weight_block_size"))
    for name, stored in list(assembly.tensors.items()):
        if stored.dtype in _FLOATS and not name.endswith(_SCALES):
            put_scaled(assembly, name, stored, block)
    assembly.drop(*_UNUSED)


def put_scaled(
    assembly: Assembly,
    name: str,
    stored: StoredTensor,
    block: Block | None,
    *,
    zeros: StoredTensor | None = None,
    label: str = "FP8",
) -> None:
    """Put one matrix, or a stack of them, together with its scales."""
    if len(stored.shape) not in {2, 3}:
        assembly.problems.append(f"{name}: is {stored.shape}, expected a matrix")
        return
    known = (f"{name}{end}" for end in _SCALES)
    found = next((full for full in known if full in assembly.tensors), f"{name}{_SCALES[0]}")
    scales = assembly.part(found, name, dtypes=_SCALE_TYPES)
    if scales is None:
        return
    shared = _shared(stored.shape, scales.shape, block)
    if shared is None:
        assembly.problems.append(
            f"{scales.name}: is {scales.shape}, which fits no blocks of {name} {stored.shape}"
        )
        return
    if zeros is not None and prod(zeros.shape) != prod(scales.shape):
        assembly.problems.append(f"{zeros.name}: is {zeros.shape}, expected {scales.shape}")
        return
    assembly.put(
        ScaledTensor(
            stored.file, name, assembly.dtype_by(scales), stored.shape, stored.start, stored.end,
            kind=stored.dtype, scales=scales, block=shared, zeros=zeros,
            height=stored.shape[-2], label=f"{label} {_words(shared, stored.shape)}",
        )
    )  # fmt: skip


def _words(block: Block, shape: tuple[int, ...]) -> str:
    rows, columns = block
    if (rows, columns) == shape[-2:]:
        return "with a scale for each matrix"
    return "with a scale for each row" if rows == 1 else f"in blocks of {rows}x{columns}"


def block_of(said: object) -> Block | None:
    """Return the rows and columns of a block as a config says them; None if it does not."""
    if not isinstance(said, list) or len(said) != 2:
        return None
    right = all(type(x) is int and x > 0 for x in said)
    return (said[0], said[1]) if right else None


def _shared(shape: tuple[int, ...], grid: tuple[int, ...], said: Block | None) -> Block | None:
    """Return how many rows and columns share a scale, None if the grid does not fit.

    >>> _shared((200, 96), (2, 1), (128, 128)), _shared((200, 96), (200, 1), None)
    ((128, 128), (1, 96))
    >>> _shared((4, 200, 96), (4,), None), _shared((200, 96), (3, 1), None)
    ((200, 96), None)
    """
    stack, (rows, columns) = shape[:-2], shape[-2:]
    if grid[: len(stack)] != stack:
        return None
    own = grid[len(stack) :]
    if said is not None and own == (-(-rows // said[0]), -(-columns // said[1])):
        return said
    if prod(own) == 1:
        return rows, columns
    if own in {(rows,), (rows, 1)}:
        return 1, columns
    if len(own) != 2 or not prod(own) or rows % own[0] or columns % own[1]:
        return None
    return rows // own[0], columns // own[1]
