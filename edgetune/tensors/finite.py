"""Whether a model's stored numbers are numbers: one NaN makes every loss one."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgetune.errors import ModelError
from edgetune.tensors.gguf.finite import all_finite
from edgetune.tensors.header import StoredTensor

_BITS: Final = {
    "float32": (np.uint32, 0x7F800000),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
}
"""Bits of the exponent: all of them are set in NaN and infinity, and in no finite number."""

CHUNK: Final = 1 << 18
"""Numbers that are looked at together; about a megabyte beside them is all this takes."""


def require_finite(stored: StoredTensor, content: memoryview) -> None:
    """Check the bytes of a tensor, or a part of them, as they lie in its file.

    A part of a tensor in blocks is whole blocks.

    Raises:
        ModelError: naming the tensor and its file if a value is NaN or infinite.
    """
    finite = (
        _finite(stored.dtype, content)
        if stored.dtype in _BITS
        else (all_finite(stored.dtype, content))
    )
    if not finite:
        raise ModelError(
            f"The tensor {stored.name} in {stored.file} has values that are NaN or infinite, "
            "and cannot be used. Fetch or convert the model again."
        )


def _finite(dtype: str, content: memoryview) -> bool:
    kind, mask = _BITS[dtype]
    numbers, exponent = np.frombuffer(content, kind), kind(mask)
    parts = range(0, len(numbers), CHUNK)
    return not any(np.any(numbers[start : start + CHUNK] & exponent == exponent) for start in parts)
