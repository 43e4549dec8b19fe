"""NF4 unpacked to bfloat16 by a kernel in C, with the bits of its text; see ``nf4.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Final

import torch
from torch import Tensor

from edgetune.tensors.packed.kinds import NF4 as QUANTILES
from edgetune.tensors.packed.kinds import NF4_GROUP as GROUP
from edgetune_torch.cpu_kernels import library, place, shared_out
from edgetune_torch.dynamic_map import dynamic_map

SHARED: Final = 1 << 13
"""Blocks of 64 weights from which on threads share them."""

PARTS: Final = ("codes", "scales", "group_scales", "offset")


def unpack(parts: Mapping[str, Tensor], out: Tensor) -> bool:
    """Unpack a matrix's parts into ``out`` (N,), if that can be done; False, and nothing done, else."""
    here = type(out) is Tensor and out.device.type == "cpu" and out.dtype == torch.bfloat16
    if not here or _checked() is None:
        return False
    _call(parts, out)
    return True


def _call(parts: Mapping[str, Tensor], out: Tensor) -> None:
    tables = dynamic_map(), _quantiles()
    arguments = [place(x) for x in (*(parts[name] for name in PARTS), *tables, out)]
    found = library()
    assert found is not None
    shared_out(found.unpacked, arguments, len(parts["scales"]), least=SHARED)


@cache
def _quantiles() -> Tensor:
    return torch.tensor(QUANTILES)


@cache
def _checked() -> ctypes.CDLL | None:
    """Return the library if it gives the same bits as the text."""
    from edgetune_torch.dynamic_map import decode_blocks
    from edgetune_torch.nf4 import unpack_by_text

    if library() is None:
        return None
    draw = torch.Generator().manual_seed(0)
    blocks = 300
    parts = {
        "codes": torch.randint(256, (blocks * 32,), generator=draw, dtype=torch.uint8),
        "scales": torch.randint(256, (blocks,), generator=draw, dtype=torch.uint8),
        "group_scales": torch.rand(-(-blocks // GROUP), generator=draw),
        "offset": torch.rand(1, generator=draw),
    }
    found, expected = (torch.empty(blocks * 64, dtype=torch.bfloat16) for _ in range(2))
    _call(parts, found)
    scales = decode_blocks(parts["scales"], parts["group_scales"], GROUP).add_(parts["offset"])
    unpack_by_text(parts["codes"], scales, expected)
    return library() if torch.equal(found, expected) else None
