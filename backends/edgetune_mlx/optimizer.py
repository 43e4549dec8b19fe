"""AdamW as :class:`edgetune.settings.spec.AdamW` pins it, with its state as named tensors.

MLX's own AdamW corrects no bias by default. Names and numbers of the state are those that the
torch backend writes, so that a run can go on with either.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.settings.spec import ADAMW

Arrays = Mapping[str, NDArray[np.generic]]


class AdamW:
    """Updates float32 tensors by their gradients; the moments are flat, in float32."""

    def __init__(self, sizes: Mapping[str, int], rates: Mapping[str, float], decay: float) -> None:
        """Update tensors of these ``sizes``, each at its entry in ``rates`` times the rate."""
        self.sizes = sizes
        self.rates = rates
        self.decay = decay
        self._moments: dict[str, mx.array] = {}

    def updated(
        self, name: str, tensor: mx.array, grad: mx.array, rate: float, step: int
    ) -> mx.array:
        """Return a trained tensor after step ``step``, counted from 1."""
        mean, square = self._advanced(name, grad.reshape(-1))
        flat = tensor.reshape(-1) * (1 - rate * self.rates[name] * self.decay)
        deviation = mx.sqrt(square) / sqrt(1 - ADAMW.beta2**step) + ADAMW.eps
        share = rate * self.rates[name] / (1 - ADAMW.beta1**step)
        found = (flat - share * (mean / deviation)).reshape(tensor.shape)
        mx.eval(found, mean, square)
        return found

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the state as ``<tensor name>.<part>``; nothing before the first step."""
        return {name: np.array(moment) for name, moment in self._moments.items()}

    def restore(self, state: Arrays) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            ModelError: naming everything that does not fit.
        """
        wanted = {
            f"{name}.{part}": (size,)
            for name, size in self.sizes.items()
            for part in ("exp_avg", "exp_avg_sq")
        }
        found = {name: x.shape for name, x in state.items()}
        if state and found != wanted:
            wrong = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
            raise ModelError(f"The optimizer state does not fit the plan: {', '.join(wrong[:8])}.")
        self._moments = {name: mx.array(np.asarray(x)) for name, x in state.items()}

    def _advanced(self, name: str, grad: mx.array) -> tuple[mx.array, mx.array]:
        zeros = mx.zeros(self.sizes[name], mx.float32)
        mean = self._moments.get(f"{name}.exp_avg", zeros)
        square = self._moments.get(f"{name}.exp_avg_sq", zeros)
        mean = ADAMW.beta1 * mean + (1 - ADAMW.beta1) * grad
        square = ADAMW.beta2 * square + (1 - ADAMW.beta2) * grad.square()
        self._moments |= {f"{name}.exp_avg": mean, f"{name}.exp_avg_sq": square}
        return mean, square


def clipped(grads: Mapping[str, mx.array], limit: float) -> tuple[dict[str, mx.array], float]:
    """Return gradients scaled down to a global norm of ``limit``, and the norm before."""
    squares, waiting = [], 0
    largest = max(grad.nbytes for grad in grads.values())
    for grad in grads.values():
        squares.append(grad.square().sum())
        waiting += grad.nbytes
        if waiting >= 2 * largest:  # all at once, MLX would hold the squares of all of them
            mx.eval(squares)
            waiting = 0
    norm = float(np.sqrt(np.array(mx.stack(squares), np.float64).sum()))
    share = limit / (norm + 1e-6)
    if not share < 1:
        return dict(grads), norm
    return {name: grad * share for name, grad in grads.items()}, norm
