"""The loss as the MLX engine writes it, run over a graph: a chunk of logits at a time.

N loss tokens, D hidden size, V vocabulary, C tokens of a chunk. Its stages are evaluated one by
one, each to its end (``backends/edgetune_mlx/loss.py``), with no memory limit to wait at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.head import TRAINED
from edgetune.memory.lazy.arrays import counted, gathered, into_sum, made_of, matmul, reduced
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    compared,
    divide,
    exp,
    mapped,
    minus_from,
    multiply,
    square,
    subtract,
    tanh,
    times,
)
from edgetune.memory.lazy.evaluation import AHEAD, Evaluation
from edgetune.memory.lazy.gradients import vjp
from edgetune.memory.lazy.graph import Array, Operation, given
from edgetune.memory.lazy.matrices import Matrix
from edgetune.memory.lazy.method import LazyMethod
from edgetune.memory.lazy.ops import LazyOps
from edgetune.memory.lazy.views import (
    concatenate,
    cut,
    expand,
    squeeze,
    swapaxes,
    total,
    updated,
    zeros,
)
from edgetune.memory.lazy.weights import FrozenBlock, frozen_head, trained_head
from edgetune.memory.ledger import Ledger
from edgetune.methods.base import AdapterTensor
from edgetune.network.block import Block
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES

PLACE, TOKEN = 8, 4
"""Bytes of a position, and of a token's number or weight."""

SCORED_BYTES = 48
"""Bytes a loss token while the losses of tokens become scores of documents and weights again."""

CHUNKS = 3
"""Chunks that are followed one by one: the last ones, before which most gradients are there."""

ENDLESS = 1 << 30
"""Tasks ahead where nothing is waited for."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some loss tokens: what is evaluated of them one after the other, with whose sums it ends."""

    stages: list[Array]
    losses: Array
    grad: Array
    learnt: Array | None
    """The gradient (V, D) of a trained head."""


@dataclass(frozen=True)
class LazyLoss:
    """The loss of rows of one shape under a method, behind a head that may be the method's own.

    ``rows`` are what it is computed of at once, a tile where ``whole`` ones are computed in tiles.
    ``of_norm`` are the trained tensors of the final norm.
    """

    own: LazyMethod
    of_norm: Sequence[AdapterTensor]
    shape: ModelShape
    whole: BatchShape
    rows: BatchShape
    head: Matrix
    trained: bool

    @classmethod
    def of(
        cls, own: LazyMethod, of_norm: Sequence[AdapterTensor], shape: ModelShape,
        rows: BatchShape, head: str, quantization: str,
    ) -> LazyLoss:  # fmt: skip
        """Return the loss behind the model's head, or behind one that is ``TRAINED``."""
        trained = head == TRAINED
        matrix = trained_head(shape, rows) if trained else frozen_head(shape, rows, quantization)
        some = rows.of_tile() if rows.tile else rows
        return cls(own, of_norm, shape, rows, some, matrix, trained)

    def gradient(self, chunk: int, *, weighed: bool, summed: bool) -> int:
        """Return the peak of the loss and its gradients, over the last block's output.

        ``weighed``: an objective over answers weighs the loss tokens, whose losses come first.
        ``summed``: gradients of another micro-batch are there, to which this one's are added.
        """
        ledger, summed = Ledger(self._places), summed or self.whole.tile > 0
        if self.whole.tile and not self.shape.blocks[-1].splits:  # all states are one array
            ledger.alloc(self.whole.activation_bytes(self.shape.stream_size))
        if weighed:
            ledger.peak += max(self._losses(chunk), self.whole.tokens * SCORED_BYTES)
            ledger.alloc(self.whole.tokens * TOKEN)
        names, inputs = self._inputs()
        normed = self._final(names, *inputs)
        chunks = list(self._chunks(normed, chunk, summed=summed))
        losses = concatenate([each.losses for each in chunks], 0)
        grad = concatenate([each.grad for each in chunks], 0)
        found = vjp(lambda *given: self._final(names, *given), inputs, [grad])
        selected, *trained = found
        spread = updated(zeros(selected.shape, selected.width), selected, adds=True)
        own = [into_sum(each) if summed else each for each in trained]
        stages = [normed, *(stage for each in chunks for stage in each.stages)]
        learnt = [chunks[-1].learnt] if chunks[-1].learnt is not None else []
        asked = [*learnt, *reversed(own), spread]
        evaluation = Evaluation(ledger, [*stages, losses, grad, *asked], ahead=ENDLESS)
        for stage in stages:
            _to_its_end(evaluation, stage)
            evaluation.drop(stage)
        for each in (losses, grad):
            _to_its_end(evaluation, each)
        evaluation.drop(losses)
        evaluation.drop(grad)
        evaluation.ahead = AHEAD
        for each in asked:
            evaluation.evaluate(each)
        return ledger.peak

    def evaluation(self, chunk: int) -> int:
        """Return the peak of the loss without its gradient."""
        return self._places + self._losses(chunk, hits=True)

    @property
    def _places(self) -> int:
        """The bytes of where loss tokens stand, what they are, and what they count."""
        return self.whole.tokens * (PLACE + 2 * TOKEN)

    def _inputs(self) -> tuple[list[str], list[Array]]:
        """Return the names of the final norm's trained tensors, and what the norm reads: states first."""
        rows, kept = self.rows, self.of_norm
        size = (rows.tokens, self.shape.stream_size)
        selected = gathered(given(size, rows.width), given(size[:1], PLACE), size)
        return [x.name for x in kept], [selected, *(given(x.shape, FLOAT32_BYTES) for x in kept)]

    def _final(self, names: list[str], x: Array, *tensors: Array) -> Array:
        """Return the states that the head reads."""
        own = self.own.with_tensors(dict(zip(names, tensors, strict=True)), training=True)
        ops = LazyOps(self.shape, self.rows, FrozenBlock(self.rows.stored))
        normed: Array = Block(ops, self.shape, None, own).normed(x)
        return normed

    def _spans(self, chunk: int) -> Iterator[tuple[int, int]]:
        """Yield the chunks that are followed, behind all others as one."""
        tokens = self.rows.tokens
        starts = range(0, tokens, chunk)
        yield from ((at, min(at + chunk, tokens)) for at in starts[-CHUNKS:])

    def _chunks(self, x: Array, chunk: int, *, summed: bool) -> Iterator[Chunk]:
        """Yield the chunks; what those before the first one left is one of them."""
        before: Array | None = given(self.head.shape, FLOAT32_BYTES) if summed else None
        spans = list(self._spans(chunk))
        if first := spans[0][0]:
            left = made_of((x,), (first, x.shape[1]), x.width)
            losses = made_of((x,), (first,), FLOAT32_BYTES)
            if self.trained and before is None:
                before = made_of((x,), self.head.shape, FLOAT32_BYTES)
            learnt = [before] if self.trained and before is not None else []
            yield Chunk([left, losses, *learnt], losses, left, before)
        for span in spans:
            part = self._chunk(cut(x, 0, *span), before)
            before = part.learnt
            yield part

    def _chunk(self, x: Array, before: Array | None) -> Chunk:
        logits = self._logits(x)
        weights = counted(x.shape[:1])
        highest = reduced(logits)
        picked = gathered(logits, weights, highest.shape)
        exponentials = exp(subtract(logits, highest))
        sums = total(exponentials, (-1,))
        each = squeeze(subtract(add(highest, mapped(sums)), picked), 1)
        losses = multiply(each, weights)
        grad = updated(divide(exponentials, sums), counted(x.shape[:1]), adds=True)
        grad = self._product_gradient(grad, logits, x.width)
        factors = expand(times(weights), 1)
        back = matmul(grad, self.head.multiplied(x.width))
        found = cast(multiply(back, factors), x.width)
        stages, learnt = [highest, picked, losses, found], None
        if self.trained:
            own = matmul(swapaxes(grad, 0, 1), cast(multiply(x, factors), x.width))
            own = cast(own, FLOAT32_BYTES)
            learnt = own if before is None else add(before, own)
            stages.append(learnt)
        return Chunk(stages, losses, found, learnt)

    def _logits(self, x: Array) -> Array:
        shape = self.shape
        out = matmul(x, swapaxes(self.head.multiplied(x.width), 0, 1))
        out = cast(out, FLOAT32_BYTES)
        if shape.head_bias:
            out = add(out, cast(given(out.shape[1:], self.rows.stored), FLOAT32_BYTES))
        if shape.logit_scale != 1.0:
            out = times(out)
        return out if shape.logit_softcap is None else times(tanh(times(out)))

    def _product_gradient(self, grad: Array, logits: Array, width: int) -> Array:
        """Return the gradient of the product alone."""
        if self.shape.logit_softcap is not None:
            grad = multiply(grad, minus_from(square(times(logits))))
        return cast(grad if self.shape.logit_scale == 1.0 else times(grad), width)

    def _losses(self, chunk: int, *, hits: bool = False) -> int:
        """Return the peak of the losses alone, with what says which tokens were the most probable."""
        names, inputs = self._inputs()
        normed, ends = self._final(names, *inputs), []
        for span in self._spans(chunk):
            logits = self._logits(cut(normed, 0, *span))
            weights = counted(logits.shape[:1])
            sums = squeeze(reduced(logits), 1)
            losses = subtract(sums, squeeze(gathered(logits, weights, (*weights.shape, 1)), 1))
            parts = [losses]
            if hits:
                best = compared(squeeze(reduced(logits), 1), weights)
                parts = [multiply(losses, weights), multiply(cast(best, FLOAT32_BYTES), weights)]
            ends.append(together(parts))
        ledger = Ledger()
        evaluation = Evaluation(ledger, [normed, *ends])
        for end in ends:
            _to_its_end(evaluation, end)
        return ledger.peak


def together(arrays: Sequence[Array]) -> Array:
    """Return what is evaluated where several arrays are asked for at once."""
    return Array((0,), FLOAT32_BYTES, Operation(arrays, tasks=0))


def _to_its_end(evaluation: Evaluation, array: Array) -> None:
    evaluation.evaluate(array)
    evaluation.settle()
