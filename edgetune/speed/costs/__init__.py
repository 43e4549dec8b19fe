"""What work costs on each kind of device where it was not measured."""

from __future__ import annotations

from edgetune.speed.costs.base import Costs
from edgetune.speed.costs.cpu import CPU
from edgetune.speed.costs.cuda import CUDA
from edgetune.speed.costs.mlx import MLX

__all__ = ["Costs", "costs_of"]


def costs_of(kind: str) -> Costs:
    """Return the costs of a kind of device."""
    return {"cpu": CPU, "cuda": CUDA, "mlx": MLX}[kind]
