"""What of each kind of device decides bytes, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgetune.device.base import DeviceKind
from edgetune.memory.costs.base import Costs
from edgetune.memory.costs.cpu import CPU
from edgetune.memory.costs.cuda import CUDA
from edgetune.memory.costs.mlx import MLX

__all__ = ["COSTS", "Costs"]

COSTS: Final[Mapping[DeviceKind, Costs]] = {"cpu": CPU, "cuda": CUDA, "mlx": MLX}
