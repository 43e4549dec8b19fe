"""Apple silicon, through MLX. Not measured yet: figures on the safe side."""

from edgetune.speed.costs.base import Costs

MLX = Costs(
    products=0.6, attention=0.5, beside_copies=1.25, operation=4e-6, asynchronous=True, fused=True
)
