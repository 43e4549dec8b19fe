"""Four-bit floats: MX FP4 and NV FP4 (OCP Microscaling Formats 1.0, table 5)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import Fp4Tensor
from edgetune.tensors.packed.scaled import scale_values
from edgetune.tensors.packed.spans import spans
from edgetune.tensors.raw import fill, number_type, plain

_MAGNITUDES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS: Final = (*_MAGNITUDES, *(-x for x in _MAGNITUDES))
_SCALE: Final = "float8_e4m3fn"
"""What the scales of NV FP4 are, whatever type their bytes have in the file."""


def fp4_rows(tensor: Fp4Tensor, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
    """Yield rows as float32, some at a time."""
    _, inputs = tensor.size
    total = None if tensor.total is None else plain(tensor.total).astype(np.float32).reshape(())
    for first, last in spans(start, stop, inputs):
        codes = np.empty((last - first, inputs // 2), np.uint8)
        fill(codes, tensor.file, tensor.start + first * inputs // 2)
        scales = _scales(tensor, first, last)
        if total is not None:
            scales = scales / total
        values = np.take(_pairs(), codes, axis=0).reshape(last - first, -1, tensor.group)
        values *= scales[..., None]
        yield values.reshape(last - first, inputs)


def kept_fp4(tensor: Fp4Tensor) -> dict[str, NDArray[Any]]:
    """Return codes and scales as MLX has them.

    Raises:
        ModelError: if a scale is not a number.
    """
    rows, inputs = tensor.size
    codes = np.empty((rows, inputs // 2), np.uint8)
    fill(codes, tensor.file, tensor.start)
    scales = plain(tensor.scales).view(np.uint8).reshape(rows, -1)
    if tensor.group == 32:
        scale_values(tensor.scales)
    return {"codes": codes.view(np.uint32), "scales": scales}


def _scales(tensor: Fp4Tensor, first: int, last: int) -> NDArray[np.float32]:
    """Return the scales (R, groups) of rows."""
    stored, columns = tensor.scales, tensor.size[1] // tensor.group
    start = stored.start + first * columns
    some = StoredTensor(
        stored.file, stored.name, stored.dtype, (last - first, columns),
        start, start + (last - first) * columns,
    )  # fmt: skip
    if tensor.group == 32:
        return scale_values(some)
    return plain(some).view(np.uint8).view(number_type(_SCALE)).astype(np.float32)


@cache
def _pairs() -> NDArray[np.float32]:
    """Return the two numbers of each byte (256, 2)."""
    return np.array([(_NUMBERS[x % 16], _NUMBERS[x // 16]) for x in range(256)], np.float32)
