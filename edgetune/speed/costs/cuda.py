"""A card, through torch. Not measured yet: figures on the safe side."""

from edgetune.speed.costs.base import Costs

CUDA = Costs(products=0.5, attention=0.6, beside_copies=1.25, operation=8e-6, asynchronous=True)
