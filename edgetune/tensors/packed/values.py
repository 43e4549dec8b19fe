"""Reading packed matrices: as numbers, or as the parts of a format of ours that has the same codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.tensors.packed.blockwise import blockwise_rows, kept_nf4
from edgetune.tensors.packed.columns import awq_rows, gptq_rows
from edgetune.tensors.packed.fp4 import fp4_rows, kept_fp4
from edgetune.tensors.packed.integers import integer_rows, kept_affine
from edgetune.tensors.packed.kinds import (
    AwqTensor,
    BlockwiseTensor,
    Fp4Tensor,
    GptqTensor,
    IntegerTensor,
    PackedTensor,
    ScaledTensor,
)
from edgetune.tensors.packed.scaled import kept_int8, scaled_rows
from edgetune.tensors.raw import number_type


def packed_values(tensor: PackedTensor) -> NDArray[Any]:
    """Return the numbers in the shape of the model; of a turned matrix, a view.

    Raises:
        ModelError: if a number is not finite, or a file ends early.
    """
    found = _rows(tensor, 0, tensor.size[0])
    return found.T if tensor.turned else found.reshape(tensor.shape)


def packed_rows(tensor: PackedTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows ``start`` to ``stop`` of the model's first axis.

    Raises:
        ModelError: as of :func:`packed_values`.
    """
    if tensor.turned:
        return packed_values(tensor)[start:stop]
    rows = tensor.size[0] // tensor.shape[0]
    found = _rows(tensor, start * rows, stop * rows)
    return found.reshape(stop - start, *tensor.shape[1:])


def kept_parts(tensor: PackedTensor, quantization: str) -> dict[str, NDArray[Any]] | None:
    """Return the parts of a format of ours, where the tensor has the same codes; else None.

    Raises:
        ModelError: if a scale is not finite, or a file ends early.
    """
    if tensor.kept_as != quantization:
        return None
    parts = _kept(tensor)
    for values in (parts or {}).values():
        if values.dtype.kind not in "iu" and not np.all(np.isfinite(values.astype(np.float32))):
            raise _not_finite(tensor)
    return parts


def _kept(tensor: PackedTensor) -> dict[str, NDArray[Any]] | None:
    match tensor:
        case ScaledTensor():
            return kept_int8(tensor)
        case BlockwiseTensor():
            return kept_nf4(tensor)
        case IntegerTensor():
            return kept_affine(tensor)
        case Fp4Tensor():
            return kept_fp4(tensor)
    return None


def _rows(tensor: PackedTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows of codes as numbers, each span as soon as it is made."""
    found: NDArray[Any] = np.empty((stop - start, tensor.size[1]), number_type(tensor.dtype))
    place = 0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by name
        for values in _unpacked(tensor, start, stop):
            part = found[place : place + len(values)]
            part[:] = values
            if not np.all(np.isfinite(part)):
                raise _not_finite(tensor)
            place += len(values)
    return found


def _unpacked(tensor: PackedTensor, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
    match tensor:
        case ScaledTensor():
            return scaled_rows(tensor, start, stop)
        case BlockwiseTensor():
            return blockwise_rows(tensor, start, stop)
        case GptqTensor():
            return gptq_rows(tensor, start, stop)
        case AwqTensor():
            return awq_rows(tensor, start, stop)
        case IntegerTensor():
            return integer_rows(tensor, start, stop)
        case Fp4Tensor():
            return fp4_rows(tensor, start, stop)
    raise TypeError(tensor)


def _not_finite(tensor: PackedTensor) -> ModelError:
    return ModelError(
        f"The tensor {tensor.name} in {tensor.file} has values that are NaN or infinite in "
        f"{tensor.dtype}, and cannot be used. Fetch the model again."
    )
