"""A causal convolution computed for some tokens of all rows at a time, and its way back.

In float32, over inputs of any type. B rows, S positions, C channels, K taps, T tokens at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgetune_torch.documents import Documents


@dataclass(frozen=True, slots=True)
class PieceConvolution:
    """A convolution of x (B, S, C) with taps (K, C), the last of which is a token's own.

    The first token stands at ``skipped`` in x. ``numbers`` (B, S) are those of the tokens'
    documents, None if no row holds several.
    """

    x: Tensor
    taps: Tensor
    numbers: Tensor | None
    skipped: int = 0

    def output(self, start: int, stop: int) -> Tensor:
        """Return the convolution (B, T, C) of the tokens from ``start`` to ``stop``.

        Tokens behind the last one count as zero.
        """
        taps, kept = self.taps, len(self.taps) - 1
        window, count = self._window(start, stop), stop - start
        y = window[:, kept:] * taps[-1]
        for back in range(1, len(taps)):
            part = window[:, kept - back : kept - back + count]
            y.addcmul_(part, self._tap(back, start, stop))
        return y

    def go_back(
        self, grad: Tensor, start: int, stop: int, x_grad: Tensor, taps_grad: Tensor
    ) -> None:
        """Add to the gradients of x (B, S, C) and of the taps (K, C) what comes of some tokens'."""
        kept = len(self.taps) - 1
        window, count = self._window(start, stop), stop - start
        for back in range(kept + 1):
            tap = self._tap(back, start, stop)
            missing = max(
                0, back - start - self.skipped
            )  # tokens that have none so far before them
            first = self.skipped + start - back
            target = x_grad[:, first + missing : first + count]
            part = grad[:, missing:]
            target.addcmul_(part, tap[:, missing:] if tap.dim() == 3 else tap)
            seen = window[:, kept - back : kept - back + count]
            both = grad * seen
            if self.numbers is not None and back:
                both *= self._same(self.numbers, back, start, stop)
            taps_grad[kept - back] += both.sum((0, 1))

    def _window(self, start: int, stop: int) -> Tensor:
        """Return x (B, K - 1 + T, C) of the tokens and those before, which may be none."""
        x, kept = self.x, len(self.taps) - 1
        first, end = self.skipped + start - kept, self.skipped + stop
        window = torch.zeros(
            len(x), end - first, x.shape[2], dtype=self.taps.dtype, device=x.device
        )
        there = x[:, max(0, first) : end]
        before = max(0, -first)
        window[:, before : before + there.shape[1]].copy_(there)
        return window

    def _tap(self, back: int, start: int, stop: int) -> Tensor:
        """Return a tap (C), or (B, T, C) with zeros where it reaches into another document."""
        tap, numbers = self.taps[-1 - back], self.numbers
        if numbers is None or not back:
            return tap
        return tap * self._same(numbers, back, start, stop)

    def _same(self, numbers: Tensor, back: int, start: int, stop: int) -> Tensor:
        """Return whether tokens have so many before them in their document (B, T, 1)."""
        at = torch.arange(self.skipped + start, self.skipped + stop, device=numbers.device)
        earlier = (at - back).clamp_(min=0)
        same = (numbers[:, at] == numbers[:, earlier]) & (at >= back)
        return same[..., None].to(self.taps.dtype)


def document_numbers(documents: Documents, x: Tensor, positions: int) -> Tensor | None:
    """Return the number (B, S) of the document of each token; padding belongs to the last one.

    None if no row of x (B, ...) holds several.
    """
    if all(len(row) <= 1 for row in documents):
        return None
    numbers = torch.zeros(len(x), positions, dtype=torch.int32, device=x.device)
    for row, lengths in enumerate(documents):
        start = 0
        for number, length in enumerate(lengths):
            numbers[row, start:] = number
            start += length
    return numbers
