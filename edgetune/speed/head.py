"""The time of the loss: logits, their gradient and that of the states.

T tokens under loss, V vocabulary, D hidden size.
"""

from __future__ import annotations

from math import ceil

from edgetune.choice import Choice
from edgetune.shape import ModelShape
from edgetune.speed.rates import Rates
from edgetune.speed.unpacking import DEQUANTIZE_COST
from edgetune.storage import BYTES, FILE_FORMAT, vocabulary_bytes

LOGITS_AND_STATES = 4
"""Operations a weight of the head and a token: two products, that of a trained head not counted."""

LOGIT_PASSES = 10
"""Times that the loss reads or writes the logits."""

SLICE = 2048
"""Rows of the head that are multiplied at a time."""

OUTSIDE, CHUNK, OF_SLICE, LEARNED = 11, 29, 43, 6
"""Operations of the loss: as such, of each chunk of tokens, of each slice of the head for it, and
further ones of a slice that is trained."""


FUSED_CHUNK = 13
"""Operations of a chunk where there are kernels."""


def loss_seconds(
    shape: ModelShape, rates: Rates, choice: Choice, *, trained: bool, graded: bool = True
) -> float:
    """Return the seconds of a micro-batch's loss and of its gradients, that of a ``trained`` head too.

    Without gradients (not ``graded``) it is half the work, behind a head that is brought as often.
    """
    tokens, share = choice.tokens, 1.0 if graded else 0.5
    matrix = shape.vocabulary * shape.hidden_size
    operations = share * LOGITS_AND_STATES + 2 * (trained and graded)
    products = operations * tokens * matrix / rates.product(choice.compute_dtype)
    logits = share * 4 * tokens * shape.vocabulary * LOGIT_PASSES / rates.pointwise
    chunks = ceil(tokens / choice.loss_chunk)
    if choice.quantization == FILE_FORMAT:
        read = matrix * DEQUANTIZE_COST[FILE_FORMAT] / rates.dequantize
    elif BYTES[choice.compute_dtype] != BYTES[shape.dtype]:
        read = matrix / rates.convert
    else:
        read = matrix * BYTES[shape.dtype] / rates.pointwise
    stored = vocabulary_bytes(shape, choice.quantization, "head")
    brought = chunks * stored * (choice.head == "disk" and not trained) / rates.disk
    table = vocabulary_bytes(shape, choice.quantization, "embedding")
    looked_up = tokens * table / shape.vocabulary / rates.disk
    walks = 2 if graded and (trained or rates.asynchronous) else 1
    computed = rates.head_factor(choice) * (products + logits + walks * chunks * read)
    return computed + brought + looked_up * (choice.embedding == "disk")


def loss_launches(shape: ModelShape, choice: Choice, *, trained: bool, fused: bool) -> float:
    """Return the operations of a micro-batch's loss and of its gradients."""
    chunks = ceil(choice.tokens / choice.loss_chunk)
    if fused:
        return OUTSIDE + FUSED_CHUNK * chunks
    slices = ceil(shape.vocabulary / SLICE) * (OF_SLICE + LEARNED * trained)
    return OUTSIDE + chunks * (CHUNK + slices)
