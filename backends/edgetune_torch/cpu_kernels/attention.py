"""Causal attention of one row by a kernel in C; see ``attention.c``.

H heads, G key/value heads, S positions, h channels of a head.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from edgetune_torch.cpu_kernels import library, place, shared_out
from edgetune_torch.kernel_use import ATTENTION, used
from edgetune_torch.precision import cpu_multiplies_bf16

CHANNELS: Final = 32
"""Channels of a head come in multiples of this."""

NEAR: Final = 0.02
"""Relative error that a check allows: roundings to bfloat16 make 0.003."""


def served(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether queries, keys and values (B, heads, S, h) are what the kernel is for."""
    plain = all(type(x) is Tensor and x.dtype == torch.bfloat16 for x in (q, k, v))
    size, alike = q.shape[-1], q.shape[2:] == k.shape[2:] == v.shape[2:]
    fits = plain and q.device.type == "cpu" and alike and q.numel() and size % CHANNELS == 0
    return bool(fits) and used(ATTENTION) and cpu_multiplies_bf16() and compiled()


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> Tensor:
    """Put the output into ``out``; return the logarithms to base 2 (1, H, S) of sums of exponents.

    q and ``out`` are (1, H, S, h), k and v (1, G, S, h).
    """
    logarithms = torch.empty(1, q.shape[1], q.shape[2])
    tensors = _aligned(q), _aligned(k), _aligned(v), out
    _call("attend", q, k, scale, (*map(_Tensor.of, tensors), logarithms))
    return logarithms


def attend_back(
    read: Sequence[Tensor], logarithms: Tensor, scale: float, results: Sequence[Tensor]
) -> None:
    """Put the gradients of q, k and v into ``results``.

    ``read`` are q, k, v, what :func:`attend` made of them, and the gradient of that.
    """
    read = [_aligned(x) for x in read]
    given = (*map(_Tensor.of, read), logarithms, *map(_Tensor.of, results))
    _call("attend_back", read[0], read[1], scale, given)


class _Tensor(ctypes.Structure):
    """As ``tensor`` in C: strides are counted in numbers."""

    _fields_ = (("at", ctypes.c_void_p), ("position", ctypes.c_long), ("head", ctypes.c_long))

    @classmethod
    def of(cls, x: Tensor) -> _Tensor:
        """Describe x (1, heads, S, h)."""
        return cls(x.data_ptr(), x.stride(2), x.stride(1))


class _Shape(ctypes.Structure):
    """As ``shape`` in C."""

    _fields_ = (
        ("positions", ctypes.c_long), ("heads", ctypes.c_long), ("shared", ctypes.c_long),
        ("channels", ctypes.c_long), ("scale", ctypes.c_float),
    )  # fmt: skip


def _aligned(x: Tensor) -> Tensor:
    """Return x with the channels of a head side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(name: str, q: Tensor, k: Tensor, scale: float, given: tuple[Any, ...]) -> None:
    """Call a function of the library, its key/value heads shared out among threads.

    Raises:
        MemoryError: if there is none for what it holds.
    """
    (_, heads, positions, size), groups = q.shape, k.shape[1]
    own = _Shape(positions, heads, heads // groups, size, scale)
    arguments = [place(x) if isinstance(x, Tensor) else ctypes.byref(x) for x in given]
    if not shared_out(getattr(library(), name), [ctypes.byref(own), *arguments], groups):
        raise MemoryError("no memory for attention")


def compiled() -> bool:
    """Return whether the kernel is here, and computes what its text does."""
    return _checked() is not None


@cache
def _checked() -> ctypes.CDLL | None:
    """Return the library if it computes what torch does, forward and back."""
    if library() is None:
        return None
    draw = torch.Generator().manual_seed(0)
    size = {"q": 4, "k": 2, "v": 2, "grad": 4}
    each = {
        name: torch.randn(1, 70, heads, CHANNELS, generator=draw).bfloat16().transpose(1, 2)
        for name, heads in size.items()
    }
    grad = each.pop("grad")
    found, expected = _by_kernel(each, grad), _by_text(each, grad)
    errors = [(x.float() - y).norm() / y.norm() for x, y in zip(found, expected, strict=True)]
    return library() if max(errors) < NEAR else None


def _by_kernel(each: dict[str, Tensor], grad: Tensor) -> list[Tensor]:
    out, results = torch.empty_like(grad), [torch.empty_like(x) for x in each.values()]
    logarithms = attend(**each, scale=0.2, out=out)
    attend_back([*each.values(), out, grad], logarithms, 0.2, results)
    return [out, *results]


def _by_text(each: dict[str, Tensor], grad: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        q, k, v = (x.float().requires_grad_() for x in each.values())
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=0.2, enable_gqa=True
        )
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.float())]
