"""bitsandbytes' four bits (Dettmers 2023, section 3), the scales in 8 bits or as float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import BlockwiseTensor
from edgetune.tensors.packed.spans import spans
from edgetune.tensors.raw import fill, number_type, plain


def blockwise_rows(tensor: BlockwiseTensor, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
    """Yield rows as float32, some at a time."""
    _, inputs = tensor.size
    table = np.array(tensor.table, np.float32)
    for first, last in spans(start, stop, inputs):
        begin, end = first * inputs, last * inputs
        packed = np.empty(-(-end // 2) - begin // 2, np.uint8)
        fill(packed, tensor.file, tensor.start + begin // 2)
        codes = np.stack((packed >> 4, packed & 15), axis=-1).reshape(-1)
        values = np.take(table, codes[begin % 2 : begin % 2 + end - begin])
        values *= _scales(tensor, begin, end)
        yield values.reshape(last - first, inputs)


def kept_nf4(tensor: BlockwiseTensor) -> dict[str, NDArray[Any]] | None:
    """Return the parts of our own NF4; None if its scales are written with other numbers."""
    nested = tensor.nested
    if nested is None or not np.allclose(plain(nested.table).ravel(), dynamic_map(), 1e-6, 0):
        return None
    codes = np.empty(tensor.end - tensor.start, np.uint8)
    fill(codes, tensor.file, tensor.start)
    return {
        "codes": codes,
        "scales": plain(tensor.scales).reshape(-1),
        "group_scales": plain(nested.scales).reshape(-1),
        "offset": np.array([nested.offset], np.float32),
    }


def dynamic_map() -> NDArray[np.float32]:
    """Return the numbers of eight bits with a dynamic exponent (Dettmers 2022, section 1.3).

    The last bit of some depends on how the borders are spaced out, which is not published.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        borders = np.linspace(0.1, 1, 2**exponent + 1).astype(np.float32)
        middles = ((borders[:-1] + borders[1:]) / np.float32(2)).tolist()
        scaled = [10.0 ** (exponent - 6) * middle for middle in middles]
        values += scaled + [-value for value in scaled]
    return np.array(sorted(values), np.float32)


def _scales(tensor: BlockwiseTensor, begin: int, end: int) -> NDArray[np.float32]:
    """Return the scale of each of the numbers from ``begin`` to ``end``."""
    first, last = begin // tensor.block, -(-end // tensor.block)
    scales = _some(tensor.scales, first, last)
    if tensor.nested is not None:
        nested = tensor.nested
        table = plain(nested.table).reshape(-1)
        groups = _some(nested.scales, first // nested.group, -(-last // nested.group))
        inner = np.repeat(groups, nested.group)[first % nested.group :][: len(scales)]
        scales = np.take(table, scales) * inner + np.float32(nested.offset)
    return np.repeat(scales, tensor.block)[begin % tensor.block :][: end - begin]


def _some(stored: StoredTensor, first: int, last: int) -> NDArray[Any]:
    """Return numbers of a tensor, whatever its axes."""
    kind = number_type(stored.dtype)
    values = np.empty(last - first, kind)
    fill(values, stored.file, stored.start + first * kind.itemsize)
    return values
