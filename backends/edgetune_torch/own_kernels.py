"""Which kernels of this backend's own compute: a run that goes on without them rounds otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import torch

from edgetune_torch import kernels
from edgetune_torch.cpu_kernels import attention, build, loss, pointwise
from edgetune_torch.kernel_use import ATTENTION, LOSS, OF_CARDS, OF_PROCESSORS, POINTWISE
from edgetune_torch.precision import cpu_multiplies_bf16

IN_C: Final[Mapping[str, Callable[[], bool]]] = {
    ATTENTION: attention.compiled,
    LOSS: loss.compiled,
    POINTWISE: pointwise.compiled,
}


def own_kernels(
    device: torch.device, dtype: torch.dtype, left_out: frozenset[str] = frozenset()
) -> str:
    """Return their language and version where they compute, nothing where torch alone does.

    If not all of them do, their names are told too: ``C 1f2e3d4c (attention, loss)``.
    """
    if device.type == "cuda" and OF_CARDS not in left_out and kernels.here(device):
        return f"{OF_CARDS} {_triton()}".strip()
    if device.type != "cpu" or dtype != torch.bfloat16 or not cpu_multiplies_bf16():
        return ""
    names = [name for name, here in IN_C.items() if name not in left_out and here()]
    if not names:
        return ""
    texts = b"".join(file.read_bytes() for file in build.TEXTS)
    told = f"C {hashlib.sha256(texts).hexdigest()[:8]}"
    return told if len(names) == len(IN_C) else f"{told} ({', '.join(names)})"


def others(told: str) -> frozenset[str]:
    """Return the kernels that :func:`own_kernels` did not name when it said this.

    >>> sorted(others("C 1f2e3d4c (attention, loss)"))
    ['Triton', 'pointwise']
    """
    language, _, rest = told.partition(" ")
    every = OF_PROCESSORS | {OF_CARDS}
    if language == OF_CARDS:
        return every - {OF_CARDS}
    if language != "C":
        return every
    _, listed, names = rest.partition("(")
    return every - (set(names.rstrip(")").split(", ")) if listed else OF_PROCESSORS)


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:  # torch's nightly builds have it under another name
        return ""
