"""Whether blocks hold numbers: one scale that is NaN makes 32 or 256 weights NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from edgetune.tensors.gguf.types import BY_NAME

HALVES: Final[Mapping[str, tuple[int, ...]]] = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
"""Where the float16 numbers of a block are: what is finite times codes is finite in float32."""

LARGEST_EXPONENT: Final = 252
"""The largest that MXFP4's largest code can be multiplied by."""

_EXPONENT: Final = 0x7C


def all_finite(kind: str, content: memoryview) -> bool:
    """Return whether all numbers of whole blocks are finite."""
    blocks = np.frombuffer(content, np.uint8).reshape(-1, BY_NAME[kind].nbytes)
    if kind == "MXFP4":
        return bool(np.all(blocks[:, 0] <= LARGEST_EXPONENT))
    upper = (blocks[:, place + 1] for place in HALVES[kind])
    return not any(np.any(byte & _EXPONENT == _EXPONENT) for byte in upper)
