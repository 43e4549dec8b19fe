"""Four bits a weight: NF4 with doubly quantized scales (Dettmers 2023, section 3).

A matrix is read row by row as blocks of 64 weights. A block's scale is its largest magnitude;
a weight's code is the nearest of 16 quantiles of the normal distribution to ``w / scale``; two
codes share a byte, the first in the high bits. The scales minus their mean (``offset``) are
stored in 8 bits of the dynamic map in groups of 256, with one float32 scale a group: 4.127 bits
a weight in all. The bytes are those that bitsandbytes makes; bitsandbytes itself is used on cards
alone that our kernel does not serve, because importing it costs 115 MB and its ``Linear4bit`` repacks
its weight in the first evaluation on a CPU with AVX512-BF16 and then trains nothing (0.50).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from edgetune.tensors.packed.kinds import NF4 as QUANTILES
from edgetune.tensors.packed.kinds import NF4_BLOCK as BLOCK
from edgetune.tensors.packed.kinds import NF4_GROUP as GROUP
from edgetune_torch import kernels
from edgetune_torch.cpu_kernels.nf4 import unpack as unpack_by_kernel
from edgetune_torch.dynamic_map import decode_blocks, encode_blocks
from edgetune_torch.matrices import Part, WritableMatrix
from edgetune_torch.native import unpack
from edgetune_torch.workspace import Workspace

CELLS = 1024
"""Cells that [-1, 1] is cut in to find a code: much narrower than the gap between borders."""

PIECE = 1 << 20
"""Weights that are quantized at a time."""

BYTES, CARD_BYTES = 1 << 16, 1 << 20
"""Packed bytes that are unpacked at a time: a processor's float32 values fit a cache, and a card,
which does so only where it has neither our kernel nor bitsandbytes, is given less often something to do.
"""


class Nf4Matrix(WritableMatrix):
    """A matrix of packed codes, 8-bit scales, the scales of these and their offset."""

    @staticmethod
    def parts_of(outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Part]:  # noqa: ARG004
        """Return the four parts; the checkpoint's dtype does not matter."""
        size = outputs * inputs
        blocks = -(-size // BLOCK)
        return {
            "codes": Part((blocks * BLOCK // 2,), torch.uint8),
            "scales": Part((blocks,), torch.uint8),
            "group_scales": Part((-(-blocks // GROUP),), torch.float32),
            "offset": Part((1,), torch.float32),
        }

    def write(self, values: Tensor) -> None:
        """Quantize ``values``, some blocks at a time; the last block is filled up with zeros."""
        flat, codes = values.reshape(-1), self.parts["codes"]
        scales = torch.empty(len(codes) * 2 // BLOCK, device=flat.device)
        for start in range(0, len(flat), PIECE):
            part = flat[start : start + PIECE].float()
            part = torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
            scale = part.abs().amax(dim=1)
            scales[start // BLOCK : start // BLOCK + len(part)] = scale
            packed = _encode(part, scale)
            codes[start // 2 : start // 2 + len(packed)] = packed
        offset = scales.mean()
        self.parts["offset"].fill_(offset)
        encode_blocks(scales - offset, self.parts["scales"], self.parts["group_scales"], GROUP)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the values in ``dtype``, computed in float32."""
        device = self.parts["codes"].device
        if kernels.served(device):
            return self._dense_by_kernel(dtype)
        if device.type == "cuda" and _has_bitsandbytes():
            return self._dense_by_bitsandbytes(dtype)
        size = self.shape[0] * self.shape[1]
        codes = self.parts["codes"]
        out = self.workspace.take("matrix", (codes.numel() * 2,), dtype)
        if not unpack_by_kernel(self.parts, out):
            scales = self._scales()
            if not unpack(codes, scales, out):
                unpack_by_text(codes, scales, out, self.workspace)
        return out[:size].view(self.shape)

    def _scales(self) -> Tensor:
        """Return the float32 scale of every block."""
        parts = self.parts
        scales = decode_blocks(parts["scales"], parts["group_scales"], GROUP)
        return scales.add_(parts["offset"])

    def _dense_by_kernel(self, dtype: torch.dtype) -> Tensor:
        from edgetune_torch.kernels.nf4 import unpack as unpack_on_card

        out = self.workspace.take("matrix", self.shape, dtype)
        unpack_on_card(self.parts, out)
        return out

    def _dense_by_bitsandbytes(self, dtype: torch.dtype) -> Tensor:
        import bitsandbytes  # noqa: F401  # registers the operation

        size = self.shape[0] * self.shape[1]
        values: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.parts["codes"], self._scales(), BLOCK, "nf4", [size], dtype
        )
        return values.view(self.shape)


def unpack_by_text(
    codes: Tensor, scales: Tensor, out: Tensor, workspace: Workspace | None = None
) -> None:
    """Unpack pairs of codes (N / 2,) with scales (N / 64,) into ``out`` (N,), some at a time."""
    workspace = workspace or Workspace(codes.device)
    step = BYTES if codes.device.type == "cpu" else CARD_BYTES
    for start in range(0, len(codes), step):
        some, blocks = codes[start : start + step], scales[start * 2 // BLOCK :]
        part = out[2 * start : 2 * start + 2 * len(some)]
        direct = part.dtype == torch.float32
        values = part if direct else workspace.take("values", part.shape, torch.float32)
        indices = workspace.take("indices", some.shape, torch.int32)
        # a pair of float32 moves as one float64
        torch.index_select(
            _pairs(codes.device), 0, indices.copy_(some), out=values.view(torch.float64)
        )
        values.view(-1, BLOCK).mul_(blocks[: len(values) // BLOCK, None])
        if not direct:
            part.copy_(values)
        del values, indices  # before those of the next piece are there


def _encode(values: Tensor, scale: Tensor) -> Tensor:
    """Return two codes a byte for blocks (N, 64) with scales (N,).

    A code is the number of borders between quantiles that a value exceeds. A table gives the
    borders below a cell of values, and one comparison the last: no cell is near two borders.
    """
    unit = values * (1 / scale.clamp(min=1e-38))[:, None]
    unit = unit.clamp_(-1, 1).view(-1)
    below, borders = (table.to(values.device) for table in _borders())
    cells = ((unit + 1) * (CELLS / 2)).int()
    count = torch.index_select(below, 0, cells)
    count += unit > torch.index_select(borders, 0, count)
    codes = count.to(torch.uint8)
    return (codes[::2] << 4) | codes[1::2]


@cache
def _borders() -> tuple[Tensor, Tensor]:
    """Return how many borders are well below each cell of [-1, 1], and the borders' values."""
    quantiles = torch.tensor(QUANTILES)
    borders = (quantiles[1:] + quantiles[:-1]) / 2
    safely = (torch.arange(CELLS + 1) - 1) / (CELLS / 2) - 1  # a cell of margin for rounding
    below = torch.bucketize(safely, borders, out_int32=True)
    return below, torch.cat((borders, torch.tensor([2.0])))


@cache
def _has_bitsandbytes() -> bool:
    return find_spec("bitsandbytes") is not None


@cache
def _pairs(device: torch.device) -> Tensor:
    """Return, for every byte, its two float32 values seen as one float64 (256,)."""
    quantiles, byte = torch.tensor(QUANTILES), torch.arange(256)
    pairs = torch.stack((quantiles[byte >> 4], quantiles[byte & 15]), dim=1)
    return pairs.contiguous().view(torch.float64).view(-1).to(device)
