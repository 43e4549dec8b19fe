"""The gradients of all trained tensors in one buffer, made once and kept from step to step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgetune_torch.out_of_memory import is_out_of_memory

PIECE = 4096
"""Numbers whose squares are added up in float32."""


def global_norm(flat: Tensor) -> Tensor:
    """Return the Euclidean norm of a flat float32 tensor, in float64.

    One float32 sum over 30 million numbers is 0.2 % too low on processors, over 100
    million 1 %: what is added gets lost beside what is there. Pieces are added in float64 instead.
    """
    whole = len(flat) // PIECE * PIECE
    pieces = torch.linalg.vector_norm(flat[:whole].view(whole // PIECE, PIECE), dim=1)
    parts = torch.cat([pieces.double(), flat[whole:].double()])
    norm: Tensor = torch.linalg.vector_norm(parts)
    return norm


class Gradients:
    """A float32 buffer whose views are the ``grad`` of the parameters."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Give every parameter a gradient of zeros."""
        sizes = [parameter.numel() for parameter in parameters.values()]
        device = next(iter(parameters.values())).device
        self.flat = torch.zeros(sum(sizes), device=device)
        self._zero = True
        self.views: dict[str, Tensor] = {}
        parts = torch.split(self.flat, sizes)
        for (name, parameter), part in zip(parameters.items(), parts, strict=True):
            self.views[name] = parameter.grad = part.view(parameter.shape)

    def set_aside(self) -> Tensor:
        """Return what was added up so far, and begin anew."""
        held = self.flat.clone()
        self.flat.zero_()
        return held

    def add_back(self, held: Tensor) -> None:
        """Add what was set aside."""
        self.flat += held

    def clip(self, longest: float, scale: float = 1.0) -> float:
        """Scale all gradients down to a global norm of ``longest``; return their norm before.

        They are ``scale`` times what they should be, and are not any more afterwards.
        """
        norm = global_norm(self.flat)
        norm = norm if scale == 1.0 else norm / scale
        factor = torch.clamp(longest / (norm + 1e-6), max=1.0)
        self.flat *= factor if scale == 1.0 else factor / scale
        return float(norm)

    def begin(self) -> None:
        """Be all zero before something is added."""
        if not self._zero:
            self.flat.zero_()
        self._zero = False

    def end(self) -> None:
        """Set all gradients to zero; where that fails, :meth:`begin` does it.

        It must not raise: what a step computed from the gradients is kept by now.
        """
        try:
            self.flat.zero_()
            self._zero = True
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
