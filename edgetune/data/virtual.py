"""Places for a method's trained tokens in front of every document."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from edgetune.data.batch import IGNORED, MicroBatch

PLACEHOLDER = 0
"""The token that stands where a trained one goes; its embedding is never read."""


def with_virtual_tokens(batch: MicroBatch, count: int) -> MicroBatch:
    """Return a micro-batch with ``count`` placeholders before each document, without loss.

    Rows grow by ``count`` for each document of the fullest row.
    """
    if count == 0:
        return batch
    width = batch.tokens.shape[1] + count * max(1, *map(len, batch.documents))
    tokens = np.full((len(batch.tokens), width), PLACEHOLDER, np.int32)
    targets = np.full_like(tokens, IGNORED)
    for row, lengths in enumerate(batch.documents):
        for index, stop in enumerate(accumulate(lengths)):
            source = slice(stop - lengths[index], stop)
            place = slice(source.start + count * (index + 1), stop + count * (index + 1))
            tokens[row, place] = batch.tokens[row, source]
            targets[row, place] = batch.targets[row, source]
    documents = tuple(tuple(length + count for length in row) for row in batch.documents)
    return MicroBatch(tokens=tokens, targets=targets, documents=documents)
