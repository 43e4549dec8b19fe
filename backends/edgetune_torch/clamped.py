"""gpt-oss's gate: ``(up + 1) * gate * sigmoid(alpha * gate)``, both within limits.

n rows, F width; gate and up are columns that alternate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune.shape import Clamp


def gated(gate_up: Tensor, clamp: Clamp) -> Tensor:
    """Return what gate and up (n, 2 F) make (n, F)."""
    gate = gate_up[:, ::2].clamp(max=clamp.limit)
    gate.mul_((gate * clamp.alpha).sigmoid_())
    return gate.mul_(gate_up[:, 1::2].clamp(-clamp.limit, clamp.limit).add_(1))


def gated_back(gate_up: Tensor, grad: Tensor, clamp: Clamp) -> Tensor:
    """Return the gradient of gate and up (n, 2 F) for that of :func:`gated` (n, F)."""
    found = torch.empty_like(gate_up)
    gate = gate_up[:, ::2].clamp(max=clamp.limit)
    share = (gate * clamp.alpha).sigmoid_()
    swish = gate.mul_(share)
    up = gate_up[:, 1::2]
    torch.mul(grad, swish, out=found[:, 1::2]).mul_(up.abs() <= clamp.limit)
    slope = swish.mul_(clamp.alpha).mul_(1 - share).add_(share)
    slope.mul_(up.clamp(-clamp.limit, clamp.limit).add_(1)).mul_(grad)
    torch.mul(slope, gate_up[:, ::2] <= clamp.limit, out=found[:, ::2])
    return found
