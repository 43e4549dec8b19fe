"""NF4 unpacked on a card: codes, their scales and the scales of these, in one launch."""

from collections.abc import Mapping
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgetune.tensors.packed.kinds import NF4 as QUANTILES
from edgetune.tensors.packed.kinds import NF4_BLOCK, NF4_GROUP
from edgetune_torch import kernels
from edgetune_torch.dynamic_map import table_on

BLOCKS = 32
"""Blocks that a program unpacks."""


@triton.jit
def _unpack(
    out, codes, scales, group_scales, offset, table, quantiles, size, blocks,
    block: tl.constexpr, group: tl.constexpr, count: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * count + tl.arange(0, count)
    known = number < blocks
    code = tl.load(scales + number, mask=known, other=0).to(tl.int32)
    scale = tl.load(table + code) * tl.load(group_scales + number // group, mask=known, other=0.0)
    scale = scale + tl.load(offset)
    column = tl.arange(0, block)
    at = number[:, None] * block + column[None, :]
    both = tl.load(codes + at // 2, mask=known[:, None], other=0).to(tl.int32)
    index = (both >> ((1 - column % 2) * 4)[None, :]) & 15
    values = tl.load(quantiles + index) * scale[:, None]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=at < size)


def unpack(parts: Mapping[str, Tensor], out: Tensor) -> None:
    """Unpack the parts of an :class:`edgetune_torch.nf4.Nf4Matrix` into ``out``, dense numbers."""
    blocks, device = len(parts["scales"]), out.device
    kernels.launch(
        _unpack, (-(-blocks // BLOCKS),), out, parts["codes"], parts["scales"],
        parts["group_scales"], parts["offset"], table_on(True, device), _quantiles(device),
        out.numel(), blocks, block=NF4_BLOCK, group=NF4_GROUP, count=BLOCKS,
    )  # fmt: skip


@cache
def _quantiles(device: torch.device) -> Tensor:
    return torch.tensor(QUANTILES, device=device)
