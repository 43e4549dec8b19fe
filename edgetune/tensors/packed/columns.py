"""GPTQ and AWQ: files have the codes of inputs below each other, and a row here is a column there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.packed.bits import bytes_of_rows, unpacked_bits
from edgetune.tensors.packed.groups import Groups
from edgetune.tensors.packed.kinds import AwqTensor, GptqTensor
from edgetune.tensors.packed.spans import spans
from edgetune.tensors.raw import plain

AWQ_ORDER: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""At which place of a word the code of each of eight rows is."""
_IN_WORD: Final = len(AWQ_ORDER)


def gptq_rows(tensor: GptqTensor, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
    """Yield rows as float32, some at a time."""
    outputs, inputs = tensor.size
    words, scales = plain(tensor.codes), plain(tensor.scales)
    zeros = unpacked_bits(bytes_of_rows(plain(tensor.zeros)), tensor.bits, outputs)
    if tensor.less_one:
        zeros = (zeros + np.uint8(1)) & np.uint8(2**tensor.bits - 1)
    groups = Groups.of(tensor.groups, len(scales), tensor.group, inputs)
    for first, last in spans(start, stop, inputs):
        packed = bytes_of_rows(words[:, first:last].T)
        codes = unpacked_bits(packed, tensor.bits, inputs)
        yield _values(codes, zeros[:, first:last], scales[:, first:last], groups)


def awq_rows(tensor: AwqTensor, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
    """Yield rows as float32, some at a time."""
    _, inputs = tensor.size
    words, scales = plain(tensor.codes), plain(tensor.scales)
    zeros = _awq_codes(plain(tensor.zeros))
    groups = Groups.of(None, len(scales), tensor.group, inputs)
    for first, last in spans(start, stop, inputs):
        outer = slice(first // _IN_WORD, -(-last // _IN_WORD))
        codes = _awq_codes(words[:, outer])[:, first % _IN_WORD :][:, : last - first]
        yield _values(codes.T, zeros[:, first:last], scales[:, first:last], groups)


def _values(
    codes: NDArray[np.uint8], zeros: NDArray[np.uint8], scales: NDArray[Any], groups: Groups
) -> NDArray[np.float32]:
    """Return ``(code - zero) * scale`` (R, K) of codes (R, K), zeros and scales (groups, R)."""
    values = codes.astype(np.float32)
    values -= groups.spread(zeros.T)
    values *= groups.spread(scales.T)
    return values


def _awq_codes(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the codes (R, 8 W) of words (R, W)."""
    codes = unpacked_bits(bytes_of_rows(words), 4, words.shape[1] * _IN_WORD)
    return codes.reshape(len(words), -1, _IN_WORD)[..., AWQ_ORDER].reshape(len(words), -1)
