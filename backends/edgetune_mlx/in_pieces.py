"""Mixers that carry a state, one piece of tokens after the other, and their way back.

The backward pass starts from the inputs alone and goes through the pieces from the last to the
first, the states between which it makes again. B rows, S positions, T tokens of a piece, C channels
that are convolved, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import mlx.core as mx

from edgetune.mixer import PIECE

Carried = tuple[mx.array, mx.array]
"""What the next tokens need: the last inputs (1, K - 1, C), and the state."""


class Rule(Protocol):
    """How a piece is computed."""

    def __call__(
        self, window: mx.array, *given: mx.array, numbers: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        """Return what is read (B, T, ...) of a window (B, K - 1 + T, C), and the state behind it.

        ``given`` are what stands beside it for each token, the state before, and the mixer's own
        tensors. ``numbers`` (B, K - 1 + T) are those of the tokens' documents, if rows hold several.
        """


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A rule, the tokens before a piece that it reads, and the size (...) of a row's state."""

    rule: Rule
    kept: int
    state: tuple[int, ...]

    def over(
        self, x: mx.array, beside: Sequence[mx.array], own: Sequence[mx.array],
        documents: mx.array | None, state: mx.array | None = None, skipped: int = 0,
    ) -> tuple[mx.array, mx.array]:  # fmt: skip
        """Return what is read (B, S, ...) of x (B, S, C), and of what is beside it (B, S, ...).

        With it comes the state behind it, for that before; None: the beginning. The first ``skipped``
        tokens were read before: the next ones reach back to them, and nothing is read of them.
        """
        count, piece = len(beside), partial(self._piece, documents=documents, skipped=skipped)
        custom: Any = mx.custom_function(partial(self._forward, count=count, piece=piece))

        @custom.vjp  # type: ignore[untyped-decorator]
        def backward(primals: Any, cotangents: Any, _: Any) -> Any:
            inputs = mx.depends(list(primals), list(cotangents))
            return self._backward(inputs, cotangents, count, piece)

        state = self._empty(x) if state is None else state
        beside = [each[:, skipped:] for each in beside] if skipped else beside
        out, behind = custom(x, *beside, state, *own)
        return mx.pad(out, [(0, 0), (skipped, 0), (0, 0)]) if skipped else out, behind

    def after(
        self, x: mx.array, beside: Sequence[mx.array], own: Sequence[mx.array],
        before: Carried | None,
    ) -> tuple[mx.array, Carried]:  # fmt: skip
        """Return the same of the next tokens of one document, and what its next ones need."""
        kept = self.kept
        last = mx.zeros((1, kept, x.shape[2]), x.dtype) if before is None else before[0]
        state = self._empty(x) if before is None else before[1]
        whole = mx.concatenate([last, x], axis=1)
        outputs = []
        for start, stop in _edges(x.shape[1]):
            parts = (whole[:, start : stop + kept], *(each[:, start:stop] for each in beside))
            out, state = self.rule(*parts, state, *own, numbers=None)
            outputs.append(out)
        return mx.concatenate(outputs, axis=1), (whole[:, whole.shape[1] - kept :], state)

    def _forward(
        self, x: mx.array, *others: mx.array, count: int, piece: Any
    ) -> tuple[mx.array, mx.array]:
        beside, state, own = others[:count], others[count], others[count + 1 :]
        outputs: list[mx.array] = []
        for start, stop in _edges(beside[0].shape[1]):
            cut = mx.depends(self._cut(x, beside, start, stop), [state])  # one piece at a time
            out, state = piece(*cut, state, *own, start=start)
            outputs.append(out)
        return mx.concatenate(outputs, axis=1), state

    def _backward(
        self, inputs: Sequence[mx.array], grads: Sequence[mx.array], count: int, piece: Any
    ) -> list[mx.array]:
        """Return the gradients of all inputs, one piece after the other."""
        x, beside, own = inputs[0], inputs[1 : 1 + count], inputs[2 + count :]
        edges, states = _edges(beside[0].shape[1]), [inputs[1 + count]]
        grad, state_grad = grads
        for start, stop in edges[:-1]:
            cut = mx.depends(self._cut(x, beside, start, stop), [states[-1]])
            states.append(piece(*cut, states[-1], *own, start=start)[1])
        early: mx.array | None = None
        parts: list[list[mx.array]] = []
        own_grads = [mx.zeros(each.shape, mx.float32) for each in own]
        for start, stop in reversed(edges):
            cut = [*self._cut(x, beside, start, stop), states.pop()]
            before = cut[0].shape[1] - (stop - start)
            given = [grad[:, start:stop], state_grad]
            cut = mx.depends(cut, [state_grad, *own_grads])  # one piece at a time
            found = mx.vjp(partial(piece, start=start), [*cut, *own], given)[1]
            early, x_grad = _with_early(early, found[0], before)
            parts.append([x_grad, *found[1 : 1 + count]])
            state_grad = found[1 + count]
            own_grads = [
                total + part.astype(mx.float32)
                for total, part in zip(own_grads, found[2 + count :], strict=True)
            ]
        of_tokens = [[each[i] for each in reversed(parts)] for i in range(1 + count)]
        if early is not None and early.shape[1]:
            of_tokens[0].insert(0, early)
        of_own = (g.astype(each.dtype) for g, each in zip(own_grads, own, strict=True))
        return [*(mx.concatenate(each, axis=1) for each in of_tokens), state_grad, *of_own]

    def _cut(
        self, x: mx.array, beside: Sequence[mx.array], start: int, stop: int
    ) -> list[mx.array]:
        """Return a piece of all, of x with the tokens before that its convolution reads."""
        skipped = x.shape[1] - beside[0].shape[1]
        first = max(0, skipped + start - self.kept)
        return [x[:, first : skipped + stop], *(each[:, start:stop] for each in beside)]

    def _piece(
        self, x: mx.array, *given: mx.array, documents: mx.array | None, start: int, skipped: int
    ) -> tuple[mx.array, mx.array]:
        """Return what a piece reads (B, T, ...), and the state behind it."""
        count, start = given[0].shape[1], skipped + start
        before = x.shape[1] - count
        numbers = None if documents is None else documents[:, start - before : start + count]
        missing = self.kept - before
        if missing:
            x = mx.pad(x, [(0, 0), (missing, 0), (0, 0)])
            if numbers is not None:
                numbers = mx.pad(numbers, [(0, 0), (missing, 0)], mode="edge")
        return self.rule(x, *given, numbers=numbers)

    def _empty(self, x: mx.array) -> mx.array:
        """Return the states of the beginning."""
        return mx.zeros((len(x), *self.state))


def _with_early(early: mx.array | None, grad: mx.array, before: int) -> tuple[mx.array, mx.array]:
    """Return the gradient of the ``before`` tokens before a piece, and that of the piece.

    ``early`` is the former of the piece behind, which is added to the last tokens.
    """
    own = grad[:, before:]
    if early is not None and early.shape[1]:
        missing = early.shape[1] - own.shape[1]
        assert missing <= 0, "pieces are longer than the convolution reaches, but for the last"
        own = own.at[:, own.shape[1] - early.shape[1] :].add(early)
    return grad[:, :before], own


def _edges(positions: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, positions, PIECE), positions]))


def decays(
    decay: mx.array, numbers: mx.array | None
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Return by how much decays what tokens read: of others, of the state; what is kept, and of it.

    ``decay`` (B, G, R, T, 1) are sums of logarithms up to each token; ``numbers`` (B, 1 + T) begin
    with the token before.
    """
    last = decay[..., -1:, :]
    apart = decay - decay.swapaxes(-1, -2)
    seen = mx.tril(mx.ones(apart.shape[-2:], mx.bool_))
    start, end, through = mx.exp(decay), mx.exp(last - decay), mx.exp(last)
    if numbers is not None:
        own = numbers[:, None, None, 1:, None]
        before, behind = numbers[:, None, None, :1, None], numbers[:, None, None, -1:, None]
        seen = seen & (own == own.swapaxes(-1, -2))
        start, end = mx.where(own == before, start, 0), mx.where(own == behind, end, 0)
        through = mx.where(before == behind, through, 0)
    return mx.exp(mx.where(seen, apart, -mx.inf)), start, end, through
