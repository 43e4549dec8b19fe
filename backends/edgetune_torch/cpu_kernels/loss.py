"""Cross entropy over tiles of bfloat16 logits by a kernel in C; see ``loss.c``.

C rows, W logits of a tile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from edgetune_torch.cpu_kernels import library, place, shared_out
from edgetune_torch.kernel_use import LOSS, used
from edgetune_torch.precision import cpu_multiplies_bf16

SHARED: Final = 1 << 17
"""Logits from which on threads share them."""

NEAR: Final = 1e-4
"""Relative error of losses that a check allows."""


class Known(NamedTuple):
    """What is known of the softmax of C rows after some tiles: float32, but for the tokens."""

    targets: Tensor
    highest: Tensor
    total: Tensor
    wanted: Tensor
    best: Tensor


class _Tile(ctypes.Structure):
    """As ``tile`` in C."""

    _fields_ = (("at", ctypes.c_void_p), ("width", ctypes.c_long), ("start", ctypes.c_long))


class _Softmax(ctypes.Structure):
    """As ``softmax`` in C."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("targets", "highest", "total", "wanted", "best")
    )


def served(x: Tensor) -> bool:
    """Return whether logits of states x (C, D) are what the kernel is for."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.bfloat16
    return plain and used(LOSS) and cpu_multiplies_bf16() and compiled()


def take_in(tile: Tensor, start: int, known: Known) -> None:
    """Take in the logits (C, W) of the tokens from ``start`` on."""
    own = _Softmax(*(x.data_ptr() for x in known))
    _call("softened", tile, start, [ctypes.byref(own)])


def weigh(tile: Tensor, start: int, known: Known) -> Tensor:
    """Take in a tile and leave e^(l - m) in the place of its logits; see :mod:`edgetune_torch.softmax`.

    Returns by how much earlier sums shrink, (C, 1).
    """
    own, shrunk = _Softmax(*(x.data_ptr() for x in known)), torch.empty_like(known.total)
    _call("weighed", tile, start, [ctypes.byref(own), place(shrunk)])
    return shrunk


def add(summed: Tensor, shrunk: Tensor, part: Tensor) -> None:
    """Let float32 sums (C, D) shrink by (C, 1) and add a bfloat16 part (C, D)."""
    each = [place(x) for x in (summed, shrunk, part)]
    _shared("shrunk_and_added", [*each, ctypes.c_long(summed.shape[1])], summed)


def differentiate(
    tile: Tensor, start: int, targets: Tensor, log_total: Tensor, scales: Tensor
) -> None:
    """Turn logits (C, W) into ``scales`` (C,) times the gradient of the rows' losses."""
    each = [place(x) for x in (targets, log_total, scales)]
    _call("differentiated_loss", tile, start, each)


def _call(name: str, tile: Tensor, start: int, given: Sequence[Any]) -> None:
    own = _Tile(tile.data_ptr(), tile.shape[1], start)
    _shared(name, [ctypes.byref(own), *given], tile)


def _shared(name: str, given: Sequence[Any], numbers: Tensor) -> None:
    """Call a function over the rows of numbers (C, W), shared out among threads."""
    rows, width = numbers.shape
    shared_out(getattr(library(), name), list(given), rows, least=max(1, SHARED // width))


def compiled() -> bool:
    """Return whether the kernel is here, and computes what its text does."""
    return _checked() is not None


@cache
def _checked() -> ctypes.CDLL | None:
    """Return the library if its losses and gradients are near those of float32."""
    if library() is None:
        return None
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 50, generator=draw).mul_(4).bfloat16()
    targets = torch.tensor([3, 0, 49, 16, 31])
    wide = logits.float()
    log_total = wide.logsumexp(1)
    slopes = torch.softmax(wide, 1) - torch.nn.functional.one_hot(targets, 50)
    known = Known(
        targets, torch.full((5,), -torch.inf), torch.zeros(5), torch.zeros(5), torch.zeros_like(targets)
    )  # fmt: skip
    weights, sums = logits.clone(), torch.ones(5, 50)
    shrunk = weigh(weights, 0, Known(*(each.clone() for each in known)))
    add(sums, shrunk + 0.5, weights)
    high = (wide - wide.amax(1, keepdim=True)).exp_().scatter_(1, targets[:, None], 0.0)
    take_in(logits, 0, known)
    found = known.highest + known.total.log()
    right = torch.allclose(sums, high + 0.5, 0.01, 1e-6)
    right = right and torch.allclose(found, log_total, rtol=NEAR)
    right = right and torch.equal(known.best, wide.argmax(1))
    right = right and torch.equal(known.wanted, wide.gather(1, targets[:, None])[:, 0])
    differentiate(logits, 0, targets, log_total, torch.ones(5))
    return library() if right and torch.allclose(logits.float(), slopes, 0.01, 1e-6) else None
