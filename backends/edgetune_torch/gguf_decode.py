"""Blocks of each type as float32; what the bits mean is in :mod:`edgetune.tensors.gguf.dequantize`.

A decoder takes N blocks (N, bytes), writes their numbers to ``out`` (N, block) and may overwrite
``codes`` (N, block), which is uint8. What else it makes is no larger than a number for every 16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from edgetune.tensors.gguf.dequantize import FP4_HALVES

LOOKED_UP = 1 << 16
"""Codes that are looked up at a time: indices are four times as wide."""

Decoder = Callable[[Tensor, Tensor, Tensor], None]


def decoder(name: str) -> Decoder:
    """Return the decoder of the type called ``name``."""
    return _DECODERS[name]


def _half(blocks: Tensor, start: int) -> Tensor:
    """Return the float16 at a place of every block as float32 (N, 1)."""
    return blocks[:, start : start + 2].view(torch.float16).float()


def _nibbles(packed: Tensor, codes: Tensor) -> Tensor:
    """Write the low halves of 16 bytes, then the high ones, to ``codes`` (N, 32)."""
    torch.bitwise_and(packed, 15, out=codes[:, :16])
    torch.bitwise_right_shift(packed, 4, out=codes[:, 16:])
    return codes


def _shifted(packed: Tensor, count: int, width: int, codes: Tensor) -> Tensor:
    """Write fields of ``width`` bits to ``codes`` (N, groups, fields, bytes), lowest bits first.

    ``packed`` (N, groups, 1, bytes) has ``count`` fields in a byte.
    """
    shifts = _shifts(count, width, packed.device)
    torch.bitwise_right_shift(packed, shifts[:, None], out=codes)
    return codes.bitwise_and_((1 << width) - 1)


@cache
def _shifts(count: int, width: int, device: torch.device) -> Tensor:
    return (torch.arange(count, device=device) * width).to(torch.uint8)


def _q4_0(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 2:18], codes))
    out.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 4:20], codes))
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _fifth(bits: Tensor, out: Tensor, codes: Tensor) -> Tensor:
    """Add 16 to the numbers whose bit is set; bits (N, 4) are those of 32 weights in order."""
    high = codes.view(-1, 4, 8)
    torch.bitwise_right_shift(bits[:, :, None], _shifts(8, 1, bits.device), out=high)
    high.bitwise_and_(1).bitwise_left_shift_(4)
    return out.add_(codes)


def _q5_0(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 6:22], codes))
    _fifth(blocks[:, 2:6], out, codes).sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 8:24], codes))
    _fifth(blocks[:, 4:8], out, codes).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor, out: Tensor, codes: Tensor) -> None:  # noqa: ARG001
    out.copy_(blocks[:, 2:34].view(torch.int8))
    out.mul_(_half(blocks, 0))


def _mxfp4(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    magnitudes = _nibbles(blocks[:, 1:17], codes).view(-1)
    values, scales = _tables(blocks.device)
    numbers = out.view(-1)
    for start in range(0, len(numbers), LOOKED_UP):
        part = slice(start, start + LOOKED_UP)
        torch.index_select(values, 0, magnitudes[part].int(), out=numbers[part])
    out.mul_(scales[blocks[:, :1].int()])


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sixteen values of MXFP4, doubled, and half of what its exponents stand for."""
    exponents = torch.arange(256, dtype=torch.float64) - 128
    return (
        torch.tensor(FP4_HALVES, dtype=torch.float32, device=device),
        torch.exp2(exponents).float().to(device),
    )


def _scale_groups(out: Tensor, scales: Tensor, minima: Tensor | None = None) -> None:
    """Multiply groups of numbers by their scales (N, groups), and take their minima away."""
    grouped = out.view(len(out), scales.shape[1], -1)
    grouped.mul_(scales[:, :, None])
    if minima is not None:
        grouped.sub_(minima[:, :, None])


def _two_bits(packed: Tensor, codes: Tensor) -> Tensor:
    _shifted(packed, 4, 2, codes.view(-1, 2, 4, 32))
    return codes


def _q2_k(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    out.copy_(_two_bits(blocks[:, 16:80].view(-1, 2, 1, 32), codes))
    packed = blocks[:, :16]
    scales = (packed & 15).float().mul_(_half(blocks, 80))
    _scale_groups(out, scales, (packed >> 4).float().mul_(_half(blocks, 82)))


def _q3_k(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    out.copy_(_two_bits(blocks[:, 32:96].view(-1, 2, 1, 32), codes))
    high = codes.view(-1, 1, 8, 32)
    _shifted(blocks[:, :32].view(-1, 1, 1, 32), 8, 1, high).bitwise_left_shift_(2)
    out.add_(codes).sub_(4)
    low, rest = blocks[:, 96:104], blocks[:, 104:108]
    scales = torch.cat((low & 15, low >> 4), 1)
    upper = rest[:, None, :] >> _shifts(4, 2, blocks.device)[:, None]
    scales |= (upper & 3).flatten(1) << 4
    _scale_groups(out, scales.float().sub_(32).mul_(_half(blocks, 108)))


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return eight scales and eight minima of 6 bits from 12 bytes, as float32 (N, 8)."""
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (last & 15) | (first >> 6 << 4)), 1)
    minima = torch.cat((second & 63, (last >> 4) | (second >> 6 << 4)), 1)
    return scales.float(), minima.float()


def _with_minima(blocks: Tensor, out: Tensor) -> None:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    _scale_groups(out, scales.mul_(_half(blocks, 0)), minima.mul_(_half(blocks, 2)))


def _q4_k(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    _shifted(blocks[:, 16:144].view(-1, 4, 1, 32), 2, 4, codes.view(-1, 4, 2, 32))
    out.copy_(codes)
    _with_minima(blocks, out)


def _q5_k(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    _shifted(blocks[:, 48:176].view(-1, 4, 1, 32), 2, 4, codes.view(-1, 4, 2, 32))
    out.copy_(codes)
    high = codes.view(-1, 1, 8, 32)
    _shifted(blocks[:, 16:48].view(-1, 1, 1, 32), 8, 1, high).bitwise_left_shift_(4)
    out.add_(codes)
    _with_minima(blocks, out)


def _q6_k(blocks: Tensor, out: Tensor, codes: Tensor) -> None:
    _shifted(blocks[:, :128].view(-1, 2, 1, 64), 2, 4, codes.view(-1, 2, 2, 64))
    out.copy_(codes)
    high = codes.view(-1, 2, 4, 32)
    _shifted(blocks[:, 128:192].view(-1, 2, 1, 32), 4, 2, high).bitwise_left_shift_(4)
    out.add_(codes).sub_(32)
    scales = blocks[:, 192:208].view(torch.int8).float()
    _scale_groups(out, scales.mul_(_half(blocks, 208)))


_DECODERS: dict[str, Decoder] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}
