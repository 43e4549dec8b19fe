"""A part of the forward pass that keeps nothing and is computed again on the way back.

What ``torch.utils.checkpoint`` does, of which that loads torch's compiler: 45 MB that no plan knows of, and
two seconds. Nothing is compiled here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Part = Callable[..., Tensor]


def recomputed(part: Part, *inputs: Tensor) -> Tensor:
    """Return ``part(*inputs)``, of which only the inputs are kept for the backward pass.

    The part must draw no random numbers. Tensors that it holds beside its inputs get their gradients, too.
    """
    if not torch.is_grad_enabled():
        return part(*inputs)
    frame = _Frame(part, inputs)
    with saved_tensors_hooks(frame.leave, frame.get):
        return part(*inputs)


class _Enough(Exception):  # noqa: N818  # no error
    """All that was kept is there again."""


class _Frame:
    """What the operations of a part keep: places at first, tensors once one is asked for."""

    def __init__(self, part: Part, inputs: tuple[Tensor, ...]) -> None:
        """Keep the inputs alone."""
        self._part, self._inputs = part, inputs
        self._places = 0
        self._again: dict[int, Tensor] = {}

    def leave(self, _: Tensor) -> int:
        """Return the place of a tensor that is not kept."""
        self._places += 1
        return self._places - 1

    def get(self, place: int) -> Tensor:
        """Return the tensor of a place, once, made again with all others if there is none yet."""
        if not self._again:
            self._compute()
        return self._again.pop(place)

    def _compute(self) -> None:
        """Compute until as many tensors were kept as before: what comes after them is not needed."""
        made: dict[int, Tensor] = {}

        def keep(x: Tensor) -> int:
            made[len(made)] = x.detach()
            if len(made) == self._places:
                raise _Enough
            return len(made) - 1

        try:
            with torch.enable_grad(), saved_tensors_hooks(keep, made.__getitem__):
                self._part(*self._inputs)
        except _Enough:
            pass
        self._again = made
