"""The outputs of blocks where the rows' answers begin, and gradients that are added to theirs."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.backend import Pull
from edgetune_mlx.checkpoints import States


@dataclass(frozen=True, slots=True)
class Pulls:
    """What is added to the gradients of blocks' outputs; ``starts`` (B,) is where answers begin."""

    pull: Pull
    starts: NDArray[np.intp]

    def at_starts(self, x: States) -> NDArray[np.float32]:
        """Return the states (B, D) where answers begin."""
        return at_starts(x, self.starts)

    def add(self, layer: int, states: NDArray[np.float32], grad: States) -> None:
        """Add to the gradient of a block's output, which had these states (B, D) at the starts."""
        found = mx.array(self.pull(layer, states))
        for row, (part, at) in enumerate(_places(grad, self.starts)):
            grad[part] = grad[part].at[row, at].add(found[row].astype(grad[part].dtype))
        mx.eval(grad)


def at_starts(x: States, starts: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the states (B, D) of hidden states at a position of each row."""
    found = [x[part][row, at] for row, (part, at) in enumerate(_places(x, starts))]
    return np.array(mx.stack(found).astype(mx.float32))


def _places(x: States, starts: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Return the part that each position is in, and where in it."""
    ends = np.cumsum([part.shape[1] for part in x])
    parts = np.searchsorted(ends, starts, side="right")
    return [
        (int(n), int(at - ends[n] + x[n].shape[1])) for n, at in zip(parts, starts, strict=True)
    ]
