"""Bytes of the loss: tiles of logits for a chunk of tokens, and the gradients around them.

N loss tokens, D hidden size, V vocabulary, C tokens of a chunk, W rows of a slice of the head.
"""

from __future__ import annotations

from dataclasses import replace

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.joined import joined_backward, joined_forward
from edgetune.memory.ledger import Ledger
from edgetune.memory.norms import norm_backward, norm_forward
from edgetune.memory.scratch import HEAD_SLICE
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES

SCORED_BYTES = 48
"""Bytes a loss token while the losses of tokens become scores of documents and weights again."""

CARD_SLICE = 4096
LOSS_BYTES = 9
"""Bytes a loss token of what a kernel says of it: loss, factor, hit."""

STATISTICS, SLOPES, WALK = 32, 50, 63
"""Bytes a loss token of its target as a place, and of what is known of its softmax after some tiles:
in an evaluation, where a head is trained, and in one walk over a frozen head."""

INDEX = 8
"""Bytes of a position."""

TRAINED = "trained"
"""Where a head is that is the method's own, in float32."""


def loss_bytes(
    shape: ModelShape,
    rows: BatchShape,
    chunk: int,
    head: str,
    *,
    weighed: bool = False,
) -> int:
    """Return the peak of the loss with its gradient on torch, over the last block's output.

    The states of one chunk at a time are selected and normalised. ``weighed``: an objective over
    answers weighs the loss tokens, whose losses come first.
    """
    ledger, some, size = Ledger(), _of_chunk(rows, chunk), shape.hidden_size
    ledger.alloc(rows.tokens * (INDEX + 4))
    if weighed:
        ledger.transient(rows.tokens * SCORED_BYTES)
        ledger.transient(_evaluated(shape, some, chunk, head))
        ledger.alloc(rows.tokens * FLOAT32_BYTES)
    ledger.alloc(rows.activation_bytes(shape.stream_size))  # the gradient of all states
    ledger.alloc(some.activation_bytes(shape.stream_size))
    joined = joined_forward(ledger, shape, some)
    norm_forward(ledger, shape.norm, size, some, size, graded=True)
    ledger.transient(_chunk(shape, some, chunk, head, gradient=True))
    ledger.alloc(some.activation_bytes(size))  # the gradient behind the norm
    norm_backward(ledger, shape.norm, size, some, size)
    ledger.free(joined)
    joined_backward(ledger, shape, some)
    return ledger.peak


def _evaluated(shape: ModelShape, some: BatchShape, chunk: int, head: str) -> int:
    """Return the peak of one chunk's losses on torch."""
    ledger = Ledger()
    selected = ledger.alloc(some.activation_bytes(shape.stream_size))
    joined = joined_forward(ledger, shape, some)
    size = shape.hidden_size
    kept = norm_forward(ledger, shape.norm, size, some, size, graded=False)
    ledger.free(selected + joined + kept)
    ledger.transient(_chunk(shape, some, chunk, head, gradient=False))
    return ledger.peak


def _of_chunk(rows: BatchShape, chunk: int) -> BatchShape:
    """Return one chunk of loss tokens as a row of its own."""
    return replace(rows, batch=1, context=min(chunk, rows.tokens))


def evaluation_bytes(shape: ModelShape, rows: BatchShape, chunk: int, head: str) -> int:
    """Return the peak of the loss without its gradient."""
    some = _of_chunk(rows, chunk)
    return rows.tokens * (INDEX + 4) + _evaluated(shape, some, chunk, head)


def _chunk(shape: ModelShape, rows: BatchShape, chunk: int, head: str, *, gradient: bool) -> int:
    """Return the peak of one chunk: its tiles of logits, and copies of one of them."""
    tokens = min(chunk, rows.tokens)
    height = min(HEAD_SLICE if rows.keeps_scratch else CARD_SLICE, shape.vocabulary)
    if rows.kernels and head != "disk":
        return _at_once(shape, rows, tokens, height, head, gradient=gradient)
    tile, numbers = FLOAT32_BYTES * tokens * height, tokens * shape.hidden_size
    narrow = 0 if rows.product == FLOAT32_BYTES else tokens * height * rows.product
    kept = numbers * rows.product if rows.upcast else 0
    kept += _slices(shape, rows, height, head)
    if not gradient:
        return kept + STATISTICS * tokens + 2 * tile
    if head == TRAINED:
        return kept + SLOPES * tokens + _by_slopes(shape, rows, tokens, height)
    # sums, and the targets' own rows
    kept += WALK * tokens + numbers * (FLOAT32_BYTES + rows.product)
    product = numbers * rows.product
    tiles = max(2 * tile, tile + max(narrow, product), (narrow or tile) + product)
    widened = 0 if rows.product == FLOAT32_BYTES else numbers * FLOAT32_BYTES
    return kept + max(tiles, widened)


def _by_slopes(shape: ModelShape, rows: BatchShape, tokens: int, height: int) -> int:
    """Return the peak where a head is trained, which keeps all tiles of the chunk for their slopes."""
    tile, kept = FLOAT32_BYTES * tokens * height, FLOAT32_BYTES * tokens * shape.vocabulary
    last = FLOAT32_BYTES * tokens * (shape.vocabulary % height or height)
    going = kept + (tile if kept == tile else max(last, tile - last))
    again = kept + tile if shape.logit_softcap is not None else kept
    if rows.product != FLOAT32_BYTES:  # a slope is narrowed, and takes its tile's place
        narrow = tokens * height * rows.product
        learnt = max(tokens, height) * shape.hidden_size * rows.product
        again = max(again, kept + narrow + max(0, learnt - min(tile, kept)))
    return max(going, FLOAT32_BYTES * tokens * shape.hidden_size + again)


def _at_once(
    shape: ModelShape, rows: BatchShape, tokens: int, height: int, head: str, *, gradient: bool
) -> int:
    """Return the peak where a card's kernel goes over all logits of the chunk and overwrites them.

    A head that is not multiplied as it lies is unpacked in slices, whose gradients are summed.
    """
    slices = _slices(shape, rows, height, head)
    logits, states = tokens * shape.vocabulary * rows.product, tokens * shape.hidden_size
    going = tokens * LOSS_BYTES + logits
    if not gradient:
        return going + slices
    summed = states * (FLOAT32_BYTES + rows.product) if slices else 0
    if head == TRAINED and rows.product != FLOAT32_BYTES:
        learnt = height * shape.hidden_size * rows.product
        summed = max(summed, states * FLOAT32_BYTES + learnt)
    return going + slices + max(summed, states * rows.product)


def _slices(shape: ModelShape, rows: BatchShape, height: int, head: str) -> int:
    """Return the bytes of slices of the head that are not there anyway, on a card.

    One is in use while the next is made; one that is read and cast is there twice.
    """
    recast = rows.product < FLOAT32_BYTES if head == TRAINED else rows.recast
    if rows.keeps_scratch or (head in {"resident", TRAINED} and not recast):
        return 0
    made = min(2 * height, shape.vocabulary) * rows.product
    read = height * rows.stored if head == "disk" and rows.recast else 0
    return (made + read) * shape.hidden_size
