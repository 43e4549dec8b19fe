"""The end of a pass: final norm, head and loss behind the last block, some loss tokens at a time.

B rows, S positions, D hidden size, N loss tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.methods.adapted import Adapted
from edgetune.network.adaptation import Adaptation
from edgetune_mlx.checkpoints import States
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.gradients import Gradients
from edgetune_mlx.loss import Head, Loss, Parts, Sums, Wanted, losses_only, token_losses
from edgetune_mlx.memory import Guard


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """The losses of the last block's output, with ``chunk`` tokens' logits alive at once."""

    decoder: Decoder
    head: Head
    guard: Guard
    chunk: int

    def wanted(self, targets: NDArray[np.int32], spans: Iterable[slice]) -> Parts:
        """Return the loss tokens of targets (B, S) in parts of their positions."""
        return Parts.of(targets, self.chunk, [*spans])

    def summed(self, x: States, wanted: Parts, method: Adaptation[mx.array]) -> Sums:
        """Return the summed loss of x (B, S, D) in parts."""
        sums, head = Sums(), self.head.of(method)
        for part, own in zip(x, wanted.each, strict=True):
            selected = self.decoder.final_norm(part.flatten(0, 1)[own.at], method)
            sums.add(losses_only(selected, own, head, chunk=self.chunk))
            self.guard.check()
        return sums

    def of_tokens(
        self, x: States, wanted: Parts, method: Adaptation[mx.array]
    ) -> NDArray[np.float32]:
        """Return the loss of each loss token of x (B, S, D) in parts, row by row, (N,)."""
        losses, head = [], self.head.of(method)
        for part, own in zip(x, wanted.each, strict=True):
            normed = self.decoder.final_norm(part.flatten(0, 1)[own.at], method)
            losses.append(token_losses(normed, own, head, chunk=self.chunk))
            self.guard.check()
        return wanted.row_by_row(losses)

    def gradient(
        self, x: mx.array, wanted: Wanted, method: Adapted[mx.array], scale: float, grads: Gradients
    ) -> tuple[Loss, mx.array, Gradients]:
        """Return the loss, the gradient (B, S, D) of x, and those of the final norm and the head.

        Nothing is evaluated yet. That of a trained head is taken out of ``grads``, and is added to.
        """
        flat = x.flatten(0, 1)
        selected, own = flat[wanted.at], method.of_head()

        def final(x: mx.array, *tensors: mx.array) -> mx.array:
            over = method.over(dict(zip(own, tensors, strict=True)))
            return self.decoder.final_norm(x, over)

        inputs = [selected, *own.values()]
        name = method.spec.trained_head(self.decoder.shape)
        before = None if name is None else grads.pop(name, None)
        loss = Loss.of(
            final(*inputs), wanted, self.head.of(method),
            chunk=self.chunk, scale=scale, before=before,
        )  # fmt: skip
        grad, *of_norm = mx.vjp(final, inputs, [loss.grad])[1]
        spread = mx.zeros_like(flat).at[wanted.at].add(grad).reshape(x.shape)
        found = dict(zip(own, of_norm, strict=True))
        if name is not None and loss.head_grad is not None:
            found[name] = loss.head_grad
        return loss, spread, found
