"""Eight-bit numbers with a dynamic exponent (Dettmers 2022, "8-bit Optimizers", section 1.3).

A number is stored as the index of the nearest of 256 values, relative to the largest magnitude
of its block. A value has a sign, an exponent from -6 to 0 and as many bits of fraction as the
exponent leaves; zero and one are exact. The unsigned map spends the sign's bit on the fraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

EXPONENTS = 7

CELLS = 1 << 16
"""Patterns of the first 16 bits of a float32 number: its sign, exponent, and 7 bits of fraction."""


@cache
def dynamic_map(signed: bool = True) -> Tensor:
    """Return the 256 values in ascending order, (256,) float32."""
    values = [0.0, 1.0]
    for exponent in range(EXPONENTS):
        steps = 2**exponent * (1 if signed else 2)
        borders = torch.linspace(0.1, 1, steps + 1, dtype=torch.float32)
        middles = (borders[:-1] + borders[1:]) / 2.0
        scaled = (10 ** (exponent + 1 - EXPONENTS) * middles).tolist()
        values += scaled + ([-value for value in scaled] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float32)


@cache
def table_on(signed: bool, device: torch.device) -> Tensor:
    """Return the values on a device; a copy at every use would stop a card each time."""
    return dynamic_map(signed).to(device)


@cache
def borders_on(signed: bool, device: torch.device) -> Tensor:
    """Return the middles between neighbouring values."""
    table = table_on(signed, device)
    return (table[1:] + table[:-1]) / 2


@dataclass(frozen=True, slots=True)
class Cells:
    """What is known of a number by the first half of its bits, (CELLS,) float32 each.

    No cell has two borders in it: a code is the number of borders ``below`` the cell, and one more
    for numbers above the next ``border``. Searching among all borders takes ten times as long.
    """

    below: Tensor
    border: Tensor


@cache
def cells_on(signed: bool, device: torch.device) -> Cells:
    """Return the cells of float32 numbers on a device."""
    borders = borders_on(signed, torch.device("cpu"))
    first = torch.arange(CELLS, dtype=torch.int64) << 16
    ends = torch.stack((first, first | 0xFFFF)).to(torch.int32).view(torch.float32)
    below = torch.bucketize(ends.amin(0), borders)
    beyond = torch.cat((borders, torch.tensor([float("inf")])))
    return Cells(below.float().to(device), beyond[below].to(device))


def load_tables(device: torch.device) -> None:
    """Make all tables on a device; what is computed with them allocates nothing then."""
    for signed in (True, False):
        table_on(signed, device)
        cells_on(signed, device)


def encode_blocks(
    values: Tensor, codes: Tensor, scales: Tensor, block: int, *, signed: bool = True
) -> None:
    """Write the codes (N,) uint8 and the scale of every block of ``values`` (N,) float32."""
    padded = F.pad(values, (0, -len(values) % block))  # a copy in any case
    spare, index = torch.empty_like(padded), torch.empty_like(padded, dtype=torch.int32)
    encode_into(padded, codes, scales, block, signed=signed, spare=spare, index=index)


def encode_into(
    values: Tensor,
    codes: Tensor,
    scales: Tensor,
    block: int,
    *,
    signed: bool,
    spare: Tensor,
    index: Tensor,
) -> None:
    """Do the same for whole blocks (M,), of which the first N have codes, allocating nothing.

    ``values``, ``spare`` (M,) float32 and ``index`` (M,) int32 are overwritten.
    """
    blocks = values.view(-1, block)
    torch.amax(torch.abs(values, out=spare).view(-1, block), dim=1, out=scales)
    blocks.div_(torch.clamp(scales, min=1e-38, out=spare[: len(scales)])[:, None])
    cells = cells_on(signed, values.device)
    torch.bitwise_right_shift(values.view(torch.int32), 16, out=index).bitwise_and_(CELLS - 1)
    values.gt_(torch.index_select(cells.border, 0, index, out=spare))
    values.add_(torch.index_select(cells.below, 0, index, out=spare))
    codes.copy_(values[: len(codes)])


def decode_blocks(codes: Tensor, scales: Tensor, block: int, *, signed: bool = True) -> Tensor:
    """Return the float32 values (N,) that the codes (N,) stand for."""
    size = len(codes) + -len(codes) % block
    values, index = scales.new_empty(size), codes.new_empty(size, dtype=torch.int32)
    decode_into(values, codes, scales, block, signed=signed, index=index)
    return values[: len(codes)]


def decode_into(
    values: Tensor, codes: Tensor, scales: Tensor, block: int, *, signed: bool, index: Tensor
) -> None:
    """Write whole blocks (M,) of values, of which the first N have codes, allocating nothing.

    The others become zero. ``index`` (M,) int32 is overwritten.
    """
    index[: len(codes)].copy_(codes)
    index[len(codes) :].zero_()
    torch.index_select(table_on(signed, codes.device), 0, index, out=values)
    values[len(codes) :].zero_()
    values.view(-1, block).mul_(scales[:, None])
