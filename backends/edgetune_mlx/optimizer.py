"""AdamW as :class:`edgetune.settings.spec.AdamW` pins it, with its state as named tensors.

MLX's own AdamW corrects no bias by default. Names and numbers of the state are those that the
torch backend writes, so that a run can go on with either.

An update is made whole or not at all. All new tensors beside all old ones would be as much memory
again as weights and state; so they are made tensor by tensor, the largest first. If memory runs
out for that one, nothing has changed. Each one leaves more memory than it found; if it runs out
later all the same, the rest is computed in place with NumPy, in memory set aside before: the same
numbers in the same order, on a processor bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.settings.spec import ADAMW
from edgetune_mlx.arrays import array_of
from edgetune_mlx.out_of_memory import is_out_of_memory

Arrays = Mapping[str, NDArray[np.generic]]
Numbers = NDArray[np.float32]

State = tuple[mx.array, mx.array, mx.array]
"""A trained tensor and its moments."""

PARTS = ("exp_avg", "exp_avg_sq")

PIECE = 1 << 14
"""Numbers whose squares are added up in float32."""

CHUNK = 1 << 16
"""Elements that are computed in place at a time."""


class AdamW:
    """Updates float32 tensors by their gradients; the moments are flat, in float32."""

    def __init__(self, sizes: Mapping[str, int], rates: Mapping[str, float], decay: float) -> None:
        """Update tensors of these ``sizes``, each at its entry in ``rates`` times the rate."""
        self.sizes = sizes
        self.rates = rates
        self.decay = decay
        self.torn = False
        """Whether an update was broken off half-way and nothing was restored since."""
        self._order = sorted(sizes, key=lambda name: -sizes[name])
        self._moments: dict[str, tuple[mx.array, mx.array]] = {}
        longest = max(sizes.values(), default=0)
        self._spare = np.empty((2, min(CHUNK, longest)), np.float32)

    def prepare(self) -> None:
        """Allocate the state, if it is not there: then an update that begins has all it needs."""
        if self._moments:
            return
        moments = {
            name: (mx.zeros(size, mx.float32), mx.zeros(size, mx.float32))
            for name, size in self.sizes.items()
        }
        mx.eval(moments)
        self._moments = moments

    def update(
        self,
        get: Callable[[str], mx.array],
        put: Callable[[str, mx.array], None],
        grads: dict[str, mx.array],
        clip: float,
        rate: float,
        number: int,
    ) -> None:
        """Replace every trained tensor; ``grads``, which are used up, count ``clip`` times.

        ``get`` and ``put`` are asked for one after the other: nobody else keeps what was replaced.
        ``number`` counts steps from 1. Nothing has changed if memory runs out, unless ``torn``.
        """
        self.prepare()
        for name in self._order:
            before = (get(name), *self._moments[name])
            factors = Factors.of(rate * self.rates[name], self.decay, number, clip)
            try:
                weight, mean, square = _advanced(before, grads[name], factors)
            except (MemoryError, RuntimeError) as error:
                if not (self.torn and is_out_of_memory(error)):
                    raise
                _advance_in_place(before, grads[name], factors, self._spare)
                weight, mean, square = before
            self.torn = True
            put(name, weight)
            self._moments[name] = (mean, square)
            del before, weight, mean, square, grads[name]  # none outlives its successor
        self.torn = False

    def state(self, *, copied: bool = True) -> dict[str, NDArray[np.generic]]:
        """Return the state as ``<tensor name>.<part>``; nothing before the first step."""
        return {
            f"{name}.{part}": array_of(moment, copied=copied)
            for name, moments in self._moments.items()
            for part, moment in zip(PARTS, moments, strict=True)
        }

    def restore(self, state: Arrays) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            ModelError: naming everything that does not fit.
        """
        wanted = {f"{name}.{part}": (size,) for name, size in self.sizes.items() for part in PARTS}
        found = {name: x.shape for name, x in state.items()}
        if state and found != wanted:
            wrong = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
            raise ModelError(f"The optimizer state does not fit the plan: {', '.join(wrong[:8])}.")
        moments = {name: mx.array(np.asarray(x)) for name, x in state.items()}
        self._moments = {
            name: (moments[f"{name}.exp_avg"], moments[f"{name}.exp_avg_sq"])
            for name in (self.sizes if state else ())
        }
        self.torn = False


@dataclass(frozen=True, slots=True)
class Factors:
    """The numbers of one tensor's update; a ``clip`` of 1 leaves gradients as they are."""

    clip: float
    decay: float
    correction: float
    share: float

    @classmethod
    def of(cls, rate: float, decay: float, number: int, clip: float) -> Factors:
        """Return those of step ``number``."""
        return cls(
            clip=clip,
            decay=1 - rate * decay,
            correction=sqrt(1 - ADAMW.beta2**number),
            share=rate / (1 - ADAMW.beta1**number),
        )


def _advanced(before: State, grad: mx.array, factors: Factors) -> State:
    """Return a tensor and its moments after a step, evaluated."""
    weight, mean, square = before
    grad = grad.reshape(-1)
    if factors.clip < 1:
        grad = grad * factors.clip
    mean = ADAMW.beta1 * mean + (1 - ADAMW.beta1) * grad
    square = ADAMW.beta2 * square + (1 - ADAMW.beta2) * grad.square()
    del grad
    deviation = mx.sqrt(square) / factors.correction + ADAMW.eps
    flat = weight.reshape(-1) * factors.decay
    after = (flat - factors.share * (mean / deviation)).reshape(weight.shape)
    mx.eval(mean, square)
    mx.eval(after)
    return after, mean, square


def _advance_in_place(before: State, grad: mx.array, factors: Factors, spare: Numbers) -> None:
    """Do the same by writing through views, which MLX's arrays give: nothing is allocated."""
    weight, mean, square = (np.array(x, copy=False).reshape(-1) for x in before)
    flat = np.array(grad, copy=False).reshape(-1)  # a copy where it is not contiguous
    for start in range(0, len(flat), spare.shape[1]):
        span = slice(start, start + spare.shape[1])
        w, m, v, g = weight[span], mean[span], square[span], flat[span]
        one, other = spare[:, : len(g)]
        np.multiply(g, np.float32(factors.clip if factors.clip < 1 else 1), out=other)
        np.multiply(other, 1 - ADAMW.beta1, out=one)
        np.add(np.multiply(m, ADAMW.beta1, out=m), one, out=m)
        np.multiply(np.square(other, out=one), 1 - ADAMW.beta2, out=one)
        np.add(np.multiply(v, ADAMW.beta2, out=v), one, out=v)
        np.add(np.divide(np.sqrt(v, out=one), factors.correction, out=one), ADAMW.eps, out=one)
        np.multiply(np.divide(m, one, out=one), factors.share, out=one)
        np.subtract(np.multiply(w, factors.decay, out=w), one, out=w)


def clipping(grads: Mapping[str, mx.array], limit: float) -> tuple[float, float]:
    """Return what brings gradients down to a global norm of ``limit``, and the norm before."""
    squares: list[mx.array] = []
    waiting = 0
    largest = max(grad.nbytes for grad in grads.values())
    for grad in grads.values():
        squares += _squares(grad)
        waiting += grad.nbytes
        if waiting >= 2 * largest:  # all at once, MLX would hold the squares of all of them
            mx.eval(squares)
            waiting = 0
    mx.eval(squares)
    norm = sqrt(sum(float(np.array(part, np.float64).sum()) for part in squares))
    return min(1.0, limit / (norm + 1e-6)), norm


def _squares(grad: mx.array) -> list[mx.array]:
    """Return sums of squares of parts of a gradient, each of a few thousand numbers.

    One float32 sum over 30 million numbers is 3 % too low on a processor: what is added gets lost
    beside what is there.
    """
    if grad.ndim > 1 and grad.shape[-1] <= PIECE:
        return [grad.square().sum(-1)]
    flat = grad.flatten()
    whole = flat.size // PIECE * PIECE
    return [
        flat[:whole].reshape(whole // PIECE, PIECE).square().sum(-1),
        flat[whole:].square().sum(),
    ]
