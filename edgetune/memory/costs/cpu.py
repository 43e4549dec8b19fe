"""A processor, through torch.

oneDNN makes a kernel for every shape of a 16-bit product and keeps it. Its cache holds 1,024 of
them unless it is told otherwise; the torch backend tells it :data:`KERNELS`.
"""

from typing import Final

from edgetune.memory.costs.base import Costs

KERNELS: Final = 64
"""Kernels kept at one time: those of a step on rows of two lengths. Another is made in 0.4 ms."""

KERNEL: Final = 700_000
"""Bytes of one: 650 kB, and 950 kB where the product is added to something, whatever the sizes of
the matrices. The machine code is 8 kB of them."""

CPU = Costs(
    libraries=285_000_000,  # training holds 270 MB before its first tensor
    widens=True,
    keeps_scratch=True,
    kernels=KERNELS * KERNEL,
    update_arrays=4,
    updated_at_once=1 << 16,
)
