"""Mixers that carry a state, piece by piece, as the MLX engine writes them.

B rows, S positions, T tokens of a piece, C channels that are convolved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from edgetune.memory.lazy.arrays import counted, made_of
from edgetune.memory.lazy.elementwise import add, cast, compared, exp, multiply, subtract, where
from edgetune.memory.lazy.gradients import custom_all, vjp
from edgetune.memory.lazy.graph import Array, Grads, Wanted
from edgetune.memory.lazy.views import concatenate, cut, depends, pad, swapaxes, updated, zeros
from edgetune.mixer import PIECE
from edgetune.storage import FLOAT32_BYTES

FOLLOWED = 2
"""Pieces at the beginning of a row, and at its end, that are followed one by one."""

Rule = Callable[..., tuple[Array, Array]]
"""What a piece reads of a window, of what stands beside it, the state before, and the mixer's own
tensors; and the state behind it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one piece, or of several that are not followed."""

    start: int
    stop: int
    pieces: int


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A rule, the tokens before a piece that it reads, what it reads of a token, a row's state."""

    rule: Rule
    kept: int
    values: int
    state: tuple[int, ...]

    def over(
        self, x: Array, beside: Sequence[Array], own: Sequence[Array],
        state: Array | None = None, skipped: int = 0,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return what is read (B, S, ...) of x (B, S, C), and of what is beside it (B, S, ...).

        With it comes the state behind it.
        """
        count = len(beside)

        def back(
            primals: list[Array], grads: Grads, _: Sequence[Array], __: Wanted
        ) -> Sequence[Array]:
            size = (x.shape[0], *self.state)
            grad, behind = grads[0], grads[1] or zeros(size, FLOAT32_BYTES)
            assert grad is not None, "what is read has a gradient"
            return self._backward(depends(primals, [grad, behind]), grad, behind, count)

        state = self._empty(x) if state is None else state
        if skipped:
            beside = [cut(each, 1, skipped, each.shape[1]) for each in beside]
        forward = partial(self._forward, count=count)
        out, behind = custom_all(forward, back, x, *beside, state, *own)
        return pad(out, 1, skipped), behind

    def _forward(self, x: Array, *others: Array, count: int) -> list[Array]:
        beside, state, own = others[:count], others[count], others[count + 1 :]
        outputs: list[Array] = []
        for span in _spans(beside[0].shape[1]):
            parts = depends(self._cut(x, beside, span), [state])  # one piece at a time
            out, state = self._piece_of(span, parts, state, own)
            outputs.append(out)
        return [concatenate(outputs, 1), state]

    def _backward(
        self, inputs: Sequence[Array], grad: Array, state_grad: Array, count: int
    ) -> list[Array]:
        """Return the gradients of all inputs, one piece after the other."""
        x, beside, own = inputs[0], inputs[1 : 1 + count], inputs[2 + count :]
        spans, states = _spans(beside[0].shape[1]), [inputs[1 + count]]
        between: list[Array] = []
        for span in spans[:-1]:
            parts = depends(self._cut(x, beside, span), [states[-1]])
            if span.pieces > 1:
                shape = (span.pieces - 1, *states[0].shape)
                between.append(made_of((*parts, states[-1]), shape, FLOAT32_BYTES))
            states.append(self._piece_of(span, parts, states[-1], own)[1])
        early: Array | None = None
        of_spans: list[list[Array]] = []
        own_grads = [zeros(each.shape, FLOAT32_BYTES) for each in own]
        for span in reversed(spans):
            parts = [*self._cut(x, beside, span), states.pop()]
            before = parts[0].shape[1] - (span.stop - span.start)
            given = [cut(grad, 1, span.start, span.stop), state_grad]
            parts = depends(parts, [state_grad, *own_grads])  # one piece at a time
            if span.pieces > 1:
                inside = (*parts, *given, *between)
                found = [*(made_of(inside, part.shape, part.width) for part in parts), *own_grads]
            else:
                found = vjp(self._piece, [*parts, *own], given)
            early, x_grad = _with_early(early, found[0], before)
            of_spans.append([x_grad, *found[1 : 1 + count]])
            state_grad = found[1 + count]
            own_grads = [
                add(sums, cast(part, FLOAT32_BYTES))
                for sums, part in zip(own_grads, found[2 + count :], strict=True)
            ]
        of_tokens = [[each[i] for each in reversed(of_spans)] for i in range(1 + count)]
        if early is not None and early.shape[1]:
            of_tokens[0].insert(0, early)
        of_own = (cast(g, each.width) for g, each in zip(own_grads, own, strict=True))
        return [*(concatenate(each, 1) for each in of_tokens), state_grad, *of_own]

    def _piece_of(
        self, span: Span, parts: Sequence[Array], state: Array, own: Sequence[Array]
    ) -> tuple[Array, Array]:
        """Return what a span reads, and the state behind it; of several pieces not their inside."""
        if span.pieces == 1:
            return self._piece(*parts, state, *own)
        x, inputs = parts[0], (*parts, state)
        out = made_of(inputs, (x.shape[0], span.stop - span.start, self.values), x.width)
        return out, made_of(inputs, state.shape, FLOAT32_BYTES)

    def _piece(self, x: Array, *given: Array) -> tuple[Array, Array]:
        return self.rule(pad(x, 1, self.kept - (x.shape[1] - given[0].shape[1])), *given)

    def _cut(self, x: Array, beside: Sequence[Array], span: Span) -> list[Array]:
        skipped = x.shape[1] - beside[0].shape[1]
        first = max(0, skipped + span.start - self.kept)
        each = (cut(y, 1, span.start, span.stop) for y in beside)
        return [cut(x, 1, first, skipped + span.stop), *each]

    def _empty(self, x: Array) -> Array:
        return zeros((x.shape[0], *self.state), FLOAT32_BYTES)


def _with_early(early: Array | None, grad: Array, before: int) -> tuple[Array, Array]:
    """Return the gradient of the tokens before a piece, and that of the piece."""
    own = cut(grad, 1, before, grad.shape[1])
    if early is not None and early.shape[1]:
        own = updated(own, early, adds=True)
    return cut(grad, 1, 0, before), own


def _spans(positions: int) -> list[Span]:
    """Return the pieces; what lies between the first and the last ones is one span."""
    edges = [*range(0, positions, PIECE), positions]
    pieces = [Span(start, stop, 1) for start, stop in pairwise(edges)]
    if len(pieces) <= 2 * FOLLOWED + 1:
        return pieces
    first, last = pieces[:FOLLOWED], pieces[-FOLLOWED:]
    return [*first, Span(first[-1].stop, last[0].start, len(pieces) - 2 * FOLLOWED), *last]


def decays(decay: Array, *, documents: bool) -> tuple[Array, Array, Array, Array]:
    """Return by how much decays what tokens read: of others, of the state; what is kept, and of it.

    ``decay`` (B, G, R, T, 1) are sums of logarithms up to each token.
    """
    count = decay.shape[3]
    last = cut(decay, 3, count - 1, count)
    apart = subtract(decay, swapaxes(decay, -1, -2))
    seen = counted((count, count), 1)
    start, end, through = exp(decay), exp(subtract(last, decay)), exp(last)
    if documents:
        rows = decay.shape[0]
        own = compared(counted((rows, 1, 1, count, count)))
        seen = multiply(seen, own)
        start = where(compared(counted((rows, 1, 1, count, 1))), start)
        end = where(compared(counted((rows, 1, 1, count, 1))), end)
        through = where(compared(counted((rows, 1, 1, 1, 1))), through)
    return exp(where(seen, apart)), start, end, through
