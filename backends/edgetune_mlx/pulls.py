"""The outputs of blocks where the rows' answers begin, and gradients that are added to theirs."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.backend import Pull


@dataclass(frozen=True, slots=True)
class Pulls:
    """What is added to the gradients of blocks' outputs; ``starts`` (B,) is where answers begin."""

    pull: Pull
    starts: NDArray[np.intp]

    def added(self, layer: int, out: mx.array, grad: mx.array) -> mx.array:
        """Return the gradient (B, S, D) of a block's output (B, S, D) with what is added."""
        found = mx.array(self.pull(layer, at_starts(out, self.starts))).astype(grad.dtype)
        grad = grad.at[mx.arange(len(self.starts)), mx.array(self.starts)].add(found)
        mx.eval(grad)
        return grad


def at_starts(x: mx.array, starts: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the states (B, D) of x (B, S, D) at a position of each row."""
    return np.array(x[mx.arange(len(starts)), mx.array(starts)].astype(mx.float32))
