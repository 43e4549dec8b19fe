"""The softmax over a vocabulary, of which a tile of logits at a time is known.

C rows, W logits of a tile. Numbers are float32, (C, 1) each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgetune_torch.cpu_kernels import loss as kernel

Chain = Callable[[Tensor, Tensor], Tensor]
"""The gradient by what a product gave of that by finished logits, and these; overwrites both."""


class Softmax:
    """What is known of the softmax of C rows after some tiles."""

    def __init__(self, targets: Tensor) -> None:
        """Begin with no tile, for targets (C,)."""
        shape, device = (len(targets), 1), targets.device
        self.targets = targets.long()[:, None]
        self.highest = torch.full(shape, float("-inf"), device=device)
        self.best = torch.zeros(shape, dtype=torch.long, device=device)
        self.total = torch.zeros(shape, device=device)
        self.wanted = torch.zeros(shape, device=device)

    def add(self, span: slice, tile: Tensor) -> None:
        """Take in the logits (C, W) of a span of the vocabulary, narrow ones by a kernel."""
        if tile.dtype != torch.float32:
            kernel.take_in(tile, span.start, self.known)
            return
        self.total *= self._shrunk(span, tile)
        self.total += (tile - self.highest).exp_().sum(-1, keepdim=True)

    def weigh(self, span: slice, tile: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
        """Take in a tile; return e^(l - m) of its logits (C, W) by what the product gave, and how
        sums of such weights shrink, (C, 1), as m, the highest logit so far, has grown.

        The weights of targets are zero. The tile is overwritten.
        """
        if tile.dtype != torch.float32:
            return tile, kernel.weigh(tile, span.start, self.known)
        shrunk = self._shrunk(span, tile)
        weights = (tile - self.highest).exp_()
        self.total *= shrunk
        self.total += weights.sum(-1, keepdim=True)
        inside, index = self.inside(span)
        weights.scatter_(1, index, torch.where(inside, 0.0, weights.gather(1, index)))
        return chain(weights, tile), shrunk

    def _shrunk(self, span: slice, tile: Tensor) -> Tensor:
        """Take in what is highest and wanted of a tile; return how earlier sums shrink, (C, 1)."""
        high, at = tile.max(-1, keepdim=True)
        self.best = torch.where(high > self.highest, at + span.start, self.best)
        highest = torch.maximum(self.highest, high)
        shrunk = torch.exp(self.highest - highest)
        self.highest = highest
        inside, index = self.inside(span)
        self.wanted += torch.where(inside, tile.gather(1, index), 0.0)
        return shrunk

    def inside(self, span: slice) -> tuple[Tensor, Tensor]:
        """Return whose target is in a span, and where in it, 0 for the others; both (C, 1)."""
        inside = (self.targets >= span.start) & (self.targets < span.stop)
        return inside, torch.where(inside, self.targets - span.start, 0)

    def targets_in(self, span: slice) -> Tensor:
        """Return the rows whose target is in a span, (at most C,)."""
        return self.inside(span)[0][:, 0].nonzero()[:, 0]

    def target_slopes(self) -> Tensor:
        """Return p - 1 of every row's target, (C, 1)."""
        return torch.expm1(self.wanted - self.log_total)

    @property
    def known(self) -> kernel.Known:
        """What a kernel reads and changes."""
        return kernel.Known(self.targets, self.highest, self.total, self.wanted, self.best)

    @property
    def log_total(self) -> Tensor:
        """The log-sum-exp of every row."""
        return self.highest + self.total.log()

    @property
    def losses(self) -> Tensor:
        """The loss of every row, (C,)."""
        return (self.log_total - self.wanted)[:, 0]
