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

    ``counts`` says for each row how many. A document that goes on from another one has its
    placeholders there. All rows grow to the length of the longest.
    """
    if not any(counts):
        return batch
    added = [
        tuple(0 if first else count for first in begins)
        for count, begins in zip(counts, batch.begins, strict=True)
    ]
    grown = [max(count, sum(row)) for count, row in zip(counts, added, strict=True)]
    tokens = np.full((len(counts), batch.tokens.shape[1] + max(grown)), PLACEHOLDER, np.int32)
    targets = np.full_like(tokens, IGNORED)
    for row, (lengths, counted) in enumerate(zip(batch.documents, added, strict=True)):
        shifts = accumulate(counted)
        for length, stop, shift in zip(lengths, accumulate(lengths), shifts, strict=True):
            source, place = slice(stop - length, stop), slice(stop - length + shift, stop + shift)
            tokens[row, place] = batch.tokens[row, source]
            targets[row, place] = batch.targets[row, source]
    documents = tuple(
        tuple(map(sum, zip(lengths, counted, strict=True)))
        for lengths, counted in zip(batch.documents, added, strict=True)
    )
    shared = tuple(
        tuple(first and first + count for first in begins)
        for count, begins in zip(counts, batch.shared, strict=False)
    )
    return replace(batch, tokens=tokens, targets=targets, documents=documents, shared=shared)
