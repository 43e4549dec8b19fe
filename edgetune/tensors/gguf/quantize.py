"""Rows of numbers to the bytes of a GGUF tensor: the plain formats, and the way to all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.gguf.quantize_blocks import q4_0, q4_1, q5_0, q5_1, q8_0
from edgetune.tensors.gguf.quantize_k import q4_k, q5_k, q6_k
from edgetune.tensors.gguf.types import FLOATS, TensorType
from edgetune.tensors.reader import number_type

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_FORMATS: Final[Mapping[str, Callable[[Float32], Bytes]]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
"""From blocks (M, numbers of a block) to their bytes (M, bytes of a block)."""


def quantized(rows: Float32, kind: TensorType) -> Bytes:
    """Return rows (N, K) as bytes (N, bytes of a row); K must be whole blocks of the type.

    Raises:
        ValueError: if rows are not whole blocks, or the type is not one that is written.
    """
    width = kind.row_bytes(rows.shape[-1])
    if kind.name in FLOATS:
        plain = np.ascontiguousarray(rows.astype(number_type(FLOATS[kind.name]), copy=False))
        return plain.reshape(-1).view(np.uint8).reshape(-1, width)
    if kind.name not in _FORMATS:
        raise ValueError(f"{kind.name} is not written; known: {', '.join([*FLOATS, *_FORMATS])}")
    blocks = np.ascontiguousarray(rows).reshape(-1, kind.block)
    return _FORMATS[kind.name](blocks).reshape(-1, width)
