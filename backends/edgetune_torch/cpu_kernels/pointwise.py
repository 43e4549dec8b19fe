"""Norms, gates and rotations of bfloat16 numbers by kernels in C; see ``pointwise.c``.

Each returns None where it is not for what it is given: the text computes that. T rows, D numbers of a
row, B rows of S positions, h channels of a head.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from edgetune_torch.cpu_kernels import library, place, shared_out
from edgetune_torch.kernel_use import POINTWISE, used
from edgetune_torch.precision import cpu_multiplies_bf16

LANES: Final = 16
"""Numbers that are computed at a time."""

SHARED: Final = 1 << 19
"""Numbers from which on threads share them."""

NEAR: Final = 0.01
"""Relative error that a check allows."""


def served(*tensors: Tensor) -> bool:
    """Return whether these tensors are of the kind that the kernels are for."""
    plain = all(type(x) is Tensor and x.dtype == torch.bfloat16 for x in tensors)
    here = plain and all(x.device.type == "cpu" for x in tensors)
    return here and used(POINTWISE) and cpu_multiplies_bf16() and compiled()


def normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor | None:
    """Return x (..., D) normalised, for a float32 weight (D)."""
    if not _norms(x, weight):
        return None
    assert weight is not None
    out = torch.empty_like(x)
    given = [place(x), place(weight), ctypes.c_float(eps), place(out), ctypes.c_long(x.shape[-1])]
    _by_rows("normed", given, x)
    return out


def normed_back(x: Tensor, weight: Tensor | None, eps: float, grad: Tensor) -> Tensor | None:
    """Return the gradient of x."""
    if not _norms(x, weight):
        return None
    assert weight is not None
    grad, out = grad.contiguous(), torch.empty_like(x)
    given = [
        place(x), place(weight), ctypes.c_float(eps), place(grad), place(out),
        ctypes.c_long(x.shape[-1]),
    ]  # fmt: skip
    _by_rows("normed_back", given, x)
    return out


def gated(gate: Tensor, up: Tensor, name: str) -> Tensor | None:
    """Return ``silu(gate) * up``."""
    if not _gates(gate, up, name):
        return None
    out = torch.empty_like(up)
    _by_lanes("gated", [gate, up, out])
    return out


def gated_back(gate: Tensor, up: Tensor, name: str, grad: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the gradients of gate and up."""
    if not _gates(gate, up, name):
        return None
    gate_grad, up_grad = torch.empty_like(gate), torch.empty_like(up)
    _by_lanes("gated_back", [gate, up, grad.contiguous(), gate_grad, up_grad])
    return gate_grad, up_grad


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor | None:
    """Return x (B, heads, S, h) rotated by tables (B or 1, 1, S, h), or rotated back."""
    heads, size = x.shape[1], x.shape[-1]
    if size % (2 * LANES) or not served(x, cos, sin):
        return None
    out = torch.empty_like(x)
    together = all(y.stride(1) == size and y.stride(-1) == 1 for y in (x, out))
    if not together or not cos.is_contiguous() or not sin.is_contiguous():
        return None
    for row in range(len(x)):
        own = row if len(cos) > 1 else 0
        each = (place(y) for y in (x[row], cos[own], sin[own], out[row]))
        sizes = (ctypes.c_long(n) for n in (heads, size, x.stride(2), size, out.stride(2)))
        sign = ctypes.c_float(-1.0 if back else 1.0)
        least = max(1, SHARED // (heads * size))
        shared_out(_function("rotated"), [*each, *sizes, sign], x.shape[2], least=least)
    return out


def _norms(x: Tensor, weight: Tensor | None) -> bool:
    if weight is None or weight.dim() != 1 or weight.dtype != torch.float32:
        return False
    own = weight.is_contiguous()
    return own and x.is_contiguous() and x.shape[-1] % (2 * LANES) == 0 and served(x)


def _gates(gate: Tensor, up: Tensor, name: str) -> bool:
    whole = gate.is_contiguous() and up.is_contiguous() and up.numel() % LANES == 0
    return name == "silu" and whole and served(gate, up)


def _by_rows(name: str, given: list[Any], x: Tensor) -> None:
    rows = x.numel() // x.shape[-1]
    shared_out(_function(name), given, rows, least=max(1, SHARED // x.shape[-1]))


def _by_lanes(name: str, tensors: list[Tensor]) -> None:
    count = tensors[0].numel() // LANES
    shared_out(_function(name), [place(x) for x in tensors], count, least=SHARED // LANES)


def _function(name: str) -> Any:
    return getattr(library(), name)


def compiled() -> bool:
    """Return whether the kernel is here, and computes what its text does."""
    return _checked() is not None


@cache
def _checked() -> ctypes.CDLL | None:
    """Return the library if its norms and gates are near those of plain float32."""
    if library() is None:
        return None
    draw = torch.Generator().manual_seed(0)
    x, y, grad = torch.randn(3, 5, 64, generator=draw).bfloat16()
    weight, out = torch.rand(64, generator=draw), torch.empty(5, 64, dtype=torch.bfloat16)
    given = [place(x), place(weight), ctypes.c_float(1e-5), place(out), ctypes.c_long(64)]
    _by_rows("normed", given, x)
    wide = x.float()
    right = _near(out, wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight)
    _by_lanes("gated", [x, y, out])
    right = right and _near(out, torch.nn.functional.silu(wide) * y.float())
    _by_lanes("gated_back", [x, y, grad, out, torch.empty_like(out)])
    slope = torch.ops.aten.silu_backward(grad.float() * y.float(), wide)
    return library() if right and _near(out, slope) else None


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool((found.float() - expected).norm() < NEAR * expected.norm())
