"""Eight-bit numbers with a dynamic exponent (Dettmers 2022, "8-bit Optimizers", section 1.3).

A number is stored as the index of the nearest of 256 values, relative to the largest magnitude
of its block. A value has a sign, an exponent from -6 to 0 and as many bits of fraction as the
exponent leaves; zero and one are exact. The unsigned map spends the sign's bit on the fraction.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

EXPONENTS = 7


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
def _table(signed: bool, device: torch.device) -> Tensor:
    """Return the values on a device; a copy at every use would stop a card each time."""
    return dynamic_map(signed).to(device)


def encode_blocks(
    values: Tensor, codes: Tensor, scales: Tensor, block: int, *, signed: bool = True
) -> None:
    """Write the codes (N,) uint8 and the scale of every block of ``values`` (N,) float32."""
    padded = F.pad(values, (0, -len(values) % block)).view(-1, block)
    torch.amax(padded.abs(), dim=1, out=scales)
    unit = padded / scales.clamp(min=1e-38)[:, None]
    table = _table(signed, values.device)
    borders = (table[1:] + table[:-1]) / 2
    found = torch.bucketize(unit.view(-1), borders, out_int32=True)
    codes.copy_(found[: len(values)])


def decode_blocks(codes: Tensor, scales: Tensor, block: int, *, signed: bool = True) -> Tensor:
    """Return the float32 values (N,) that the codes (N,) stand for."""
    table = _table(signed, codes.device)
    values = torch.index_select(table, 0, codes.int())
    padded = F.pad(values, (0, -len(values) % block)).view(-1, block)
    return padded.mul_(scales[:, None]).view(-1)[: len(values)]
