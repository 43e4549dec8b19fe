"""Rows as the engines compute them: with places for a method's trained tokens, and filled up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from edgetune.buckets import bucket
from edgetune.data.batch import IGNORED, MicroBatch

PLACEHOLDER = 0
"""The token that stands where a trained one goes; its embedding is never read."""


def computed(batch: MicroBatch, counts: Sequence[int]) -> MicroBatch:
    """Return a micro-batch with its virtual tokens, in rows of one of the few lengths there are."""
    batch = with_virtual_tokens(batch, counts)
    return batch.widened(bucket(batch.tokens.shape[1]))


def with_virtual_tokens(batch: MicroBatch, counts: Sequence[int]) -> MicroBatch:
    """Return a micro-batch with placeholders before each document, without loss.

    ``counts`` says for each row how many. All rows grow to the length of the longest.
    """
    if not any(counts):
        return batch
    grown = [count * max(1, len(row)) for count, row in zip(counts, batch.documents, strict=True)]
    tokens = np.full((len(counts), batch.tokens.shape[1] + max(grown)), PLACEHOLDER, np.int32)
    targets = np.full_like(tokens, IGNORED)
    for row, (count, lengths) in enumerate(zip(counts, batch.documents, strict=True)):
        for index, stop in enumerate(accumulate(lengths)):
            source = slice(stop - lengths[index], stop)
            place = slice(source.start + count * (index + 1), stop + count * (index + 1))
            tokens[row, place] = batch.tokens[row, source]
            targets[row, place] = batch.targets[row, source]
    documents = tuple(
        tuple(length + count for length in row)
        for count, row in zip(counts, batch.documents, strict=True)
    )
    return replace(batch, tokens=tokens, targets=targets, documents=documents)
