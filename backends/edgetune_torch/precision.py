"""Which number format matrix products are computed in.

Activations are kept in the plan's compute dtype. Where the processor has no 16-bit units a
bfloat16 product takes three times as long as a float32 one, so there products widen their
inputs, sum in float32 and round once: the memory of bfloat16 at the speed of float32.
"""

from __future__ import annotations

from functools import cache

import torch

from edgetune.device.cpu import multiplies_16bit
from edgetune.device.system import this_system


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the format in which tensors of ``dtype`` are multiplied on ``device``."""
    if dtype == torch.float32 or device.type != "cpu":
        return dtype
    return dtype if dtype == torch.bfloat16 and cpu_multiplies_bf16() else torch.float32


def attention_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the format in which attention multiplies tensors of ``dtype`` on ``device``."""
    return torch.float32 if device.type == "cpu" else dtype


@cache
def attends(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether torch has an attention kernel in ``dtype`` that keeps no scores.

    A card before Ampere has none in bfloat16: torch would hold the scores of all queries at once.
    """
    if device.type != "cuda" or dtype != torch.bfloat16:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def cpu_multiplies_bf16() -> bool:
    """Return whether this processor multiplies bfloat16, as plans for it say."""
    return multiplies_16bit(this_system())
