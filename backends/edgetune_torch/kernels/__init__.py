"""Kernels in Triton for cards: each computes in one launch what its torch text does in many.

The text stays the reference, and what computes everywhere else. The modules of this package import
Triton, so they are imported where they are used; nothing of a card is asked before a tensor is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from edgetune.device.kernels import kernel_absence
from edgetune.device.system import this_system
from edgetune_torch.kernel_use import OF_CARDS, used


def served(device: torch.device) -> bool:
    """Return whether these kernels compute on a device, as plans for it say."""
    return device.type == "cuda" and used(OF_CARDS) and here(device)


@cache
def here(device: torch.device) -> bool:
    """Return whether a card has what these kernels need."""
    return kernel_absence(this_system(), torch.cuda.get_device_capability(device)) is None


def launch(kernel: Any, grid: Sequence[int], first: Tensor, *rest: Any, **constants: Any) -> None:
    """Run a kernel over a grid of programs; tensors without content are left as they are.

    Products and sums are not fused into one rounding: numbers stay those of the text.
    """
    if first.device.type != "meta":
        kernel[tuple(grid)](first, *rest, **constants, enable_fp_fusion=False)


def power_of_2(number: int) -> int:
    """Return the least power of two that is not less than a number: ranges of Triton are such."""
    return 1 << max(0, number - 1).bit_length()


def flat_rows(x: Tensor) -> Tensor:
    """Return x (..., N) as rows (T, N) whose numbers lie beside each other."""
    rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
    return rows if rows.stride(-1) == 1 else rows.contiguous()
