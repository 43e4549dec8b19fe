"""What work costs on each kind of device where it was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgetune.device.base import DeviceKind
from edgetune.speed.costs.base import Costs
from edgetune.speed.costs.cpu import CPU
from edgetune.speed.costs.cuda import CUDA
from edgetune.speed.costs.mlx import MLX

__all__ = ["COSTS", "Costs"]

COSTS: Final[Mapping[DeviceKind, Costs]] = {"cpu": CPU, "cuda": CUDA, "mlx": MLX}
