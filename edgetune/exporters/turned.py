"""In which runs of rows a stored matrix is read, where any of them is spread over all of its file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgetune.model import StoredTensor
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.writer import row_spans

HELD: Final = 1 << 24
"""Numbers of a matrix that are held so that it is read once: 64 MiB in float32, GPT-2 XL's largest."""


def spans_of(stored: StoredTensor) -> Iterator[tuple[int, int]]:
    """Yield where runs of rows begin and end: one run, where each would read the whole matrix.

    A matrix of GPT-2 that is the other way round in a GGUF file is such, if it is not too large.
    """
    turned = isinstance(stored, GgufTensor) and stored.transposed
    if turned and stored.shape[0] * stored.shape[1] <= HELD:
        yield 0, stored.shape[0]
    else:
        yield from row_spans(stored.shape)
