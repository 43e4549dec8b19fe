"""How a method's tensors join the forward pass: the places where it may step in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.shape import Linear
from edgetune_torch.linear import frozen_linear
from edgetune_torch.matrices import Matrix


class Adaptation:
    """No method at all: the frozen model. Methods override the places they act on."""

    def __init__(self, parameters: Mapping[str, Parameter] | None = None) -> None:
        """Keep the trained tensors by the names of :mod:`edgetune.methods`."""
        self.parameters = dict(parameters or {})

    def seed(self, seed: str | None) -> None:
        """Draw everything random from ``seed`` until the next call; None: evaluation."""

    def first_layer(self) -> int:
        """Return the first block that is adapted: gradients stop there."""
        return 0

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return a block's projection of x (..., inputs) to (..., outputs)."""
        return frozen_linear(x, matrix, bias)


BASE = Adaptation()
