"""A processor, through torch."""

from edgetune.speed.costs.base import Costs

CPU = Costs(
    products=0.55,
    attention=0.15,
    beside_copies=1.06,  # measured: tools/bench/peers.py
    operation=8e-6,
    asynchronous=False,
    attends_wide=True,
    in_pieces=True,
    updated_at_once=1 << 16,
    sharing=8e-6,  # from blocks of hidden size 256, 512 and 1,024
    lookups=1.5e-3,  # of codes, which are not vectorised
)
