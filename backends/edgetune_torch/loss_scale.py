"""The factor by which losses are multiplied in float16, whose smallest gradients would vanish.

A power of two, so that dividing by it is exact. It is as large as gradients allow: where they overflow,
the same step is computed again with half of it, and after a while without that it is doubled
(Micikevicius 2018, section 3.2). In other number formats it is 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

NAME = "loss_scale"
"""Of its state among the optimizer's tensors."""

START, LARGEST = 2.0**16, 2.0**24
PATIENCE = 200
"""Steps without an overflow after which it is doubled."""


class LossScale:
    """What losses are multiplied by now, and how many steps went well with it."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Begin for a compute dtype."""
        self.moves = dtype == torch.float16
        self.value = START if self.moves else 1.0
        self._steps = 0

    def halve(self) -> bool:
        """Halve it, for gradients that overflowed; return whether that can help."""
        if self.value <= 1.0:
            return False
        self.value, self._steps = self.value / 2, 0
        return True

    def went_well(self) -> None:
        """Count a step whose gradients were finite."""
        if not self.moves:
            return
        self._steps += 1
        if self._steps == PATIENCE:
            self.value, self._steps = min(2 * self.value, LARGEST), 0

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what a run goes on with; nothing where it does not move."""
        return {NAME: np.array([self.value, self._steps])} if self.moves else {}

    def take(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Take what :meth:`state` returned out of a state; begin anew if it is not there."""
        found = state.pop(NAME, None)
        if found is not None and self.moves:
            self.value, self._steps = float(found[0]), int(found[1])
