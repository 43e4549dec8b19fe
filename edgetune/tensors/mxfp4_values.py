"""Reading matrices in MX FP4 (:mod:`edgetune.tensors.mxfp4`), as codes or as numbers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.tensors.mxfp4 import GROUP, Mxfp4Tensor
from edgetune.tensors.raw import fill, number_type

BIAS: Final = 127
NO_NUMBER: Final = 255
"""A scale that is none."""

_MAGNITUDES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS: Final = (*_MAGNITUDES, *(-x for x in _MAGNITUDES))

ROWS: Final = 256
"""Rows that are in float32 at a time."""


def read_codes(tensor: Mxfp4Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return codes (outputs, inputs / 2) and scales (outputs, inputs / 32).

    Raises:
        ModelError: if a scale is not a number, or a file ends early.
    """
    outputs, inputs = tensor.size
    codes = np.empty((outputs, inputs // 2), np.uint8)
    scales = np.empty((outputs, inputs // GROUP), np.uint8)
    fill(codes, tensor.file, tensor.start)
    fill(scales, tensor.scales.file, tensor.scales.start)
    if np.any(scales == NO_NUMBER):
        raise ModelError(
            f"The tensor {tensor.scales.name} in {tensor.scales.file} has values that are NaN, and "
            "cannot be used. Fetch the model again."
        )
    return codes, scales


def read_values(tensor: Mxfp4Tensor) -> NDArray[Any]:
    """Return the values (inputs, outputs), a view of rows (outputs, inputs).

    Raises:
        ModelError: as of :func:`read_codes`.
    """
    codes, scales = read_codes(tensor)
    found: NDArray[Any] = np.empty(tensor.size, number_type(tensor.dtype))
    pairs = np.array([(_NUMBERS[x % 16], _NUMBERS[x // 16]) for x in range(256)], np.float32)
    for start in range(0, len(found), ROWS):
        span = slice(start, start + ROWS)
        values = pairs[codes[span]].reshape(*scales[span].shape, GROUP)
        values *= np.exp2(scales[span].astype(np.float32) - BIAS)[..., None]
        found[span] = values.reshape(len(values), -1)
    turned: NDArray[Any] = found.T
    return turned
