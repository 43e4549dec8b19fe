"""Whole numbers of a few bits, row by row: compressed-tensors' and MLX's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.packed.bits import bytes_of_rows, unpacked_bits
from edgetune.tensors.packed.groups import Groups
from edgetune.tensors.packed.kinds import IntegerTensor
from edgetune.tensors.packed.spans import spans
from edgetune.tensors.raw import plain, plain_rows


def integer_rows(tensor: IntegerTensor, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
    """Yield rows as float32, some at a time."""
    outputs, inputs = tensor.size
    groups = Groups.of(tensor.groups, tensor.scales.shape[1], tensor.group, inputs)
    zeros = None if tensor.zeros is None else _zeros(tensor, outputs)
    for first, last in spans(start, stop, inputs):
        packed = bytes_of_rows(plain_rows(tensor.codes, first, last))
        codes = unpacked_bits(packed, tensor.bits, inputs)
        scales = plain_rows(tensor.scales, first, last)
        if tensor.biases is not None:
            biases = plain_rows(tensor.biases, first, last)
            yield _affine(codes, scales, biases, groups)
            continue
        values = codes.astype(np.float32)
        values -= 2.0 ** (tensor.bits - 1) if zeros is None else groups.spread(zeros[first:last])
        values *= groups.spread(scales)
        yield values


def kept_affine(tensor: IntegerTensor) -> dict[str, NDArray[Any]]:
    """Return codes, scales and biases as MLX has them."""
    assert tensor.biases is not None
    codes = plain(tensor.codes).view(np.uint32)
    return {"codes": codes, "scales": plain(tensor.scales), "biases": plain(tensor.biases)}


def _zeros(tensor: IntegerTensor, outputs: int) -> NDArray[np.float32]:
    """Return the zero points (N, groups): what is taken from a code, its offset included.

    Both are stored with the offset of codes, so that one of them is left.
    """
    assert tensor.zeros is not None
    packed = bytes_of_rows(plain(tensor.zeros).T)
    found: NDArray[np.float32] = unpacked_bits(packed, tensor.bits, outputs).T.astype(np.float32)
    return found


def _affine(
    codes: NDArray[np.uint8], scales: NDArray[Any], biases: NDArray[Any], groups: Groups
) -> NDArray[np.float32]:
    """Return ``code * scale + bias``, both rounded to the type of the scales, as MLX computes it."""
    kind = scales.dtype
    values = codes.astype(np.float32)
    values *= groups.spread(scales)
    values = values.astype(kind).astype(np.float32)
    values += groups.spread(biases)
    return values.astype(kind).astype(np.float32)
