"""The moving averages of AdamW, in float32 or in eight bits, on the device or in host memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.errors import ModelError
from edgetune_torch.dynamic_map import decode_blocks, encode_blocks

BLOCK = 256
"""Elements that share a scale (Dettmers 2022, section 2.1)."""

SMALLEST = 4096
"""Tensors of fewer elements stay in float32: they cost little and matter much."""

CHUNK = 1 << 20
"""Elements that are updated at a time; a multiple of the block."""

Arrays = Mapping[str, NDArray[np.generic]]


class Moment(Protocol):
    """One moving average of one tensor, by flat spans."""

    def read(self, span: slice) -> Tensor:
        """Return float32 values that may be overwritten."""

    def write(self, span: slice, values: Tensor) -> None:
        """Keep values."""

    def parts(self) -> dict[str, Tensor]:
        """Return what is kept, by a suffix of the state's name."""


class WideMoment:
    """A moving average in float32."""

    def __init__(self, size: int, device: torch.device) -> None:
        """Begin with zeros."""
        self.values = torch.zeros(size, device=device)

    def read(self, span: slice) -> Tensor:
        """Return the values themselves."""
        return self.values[span]

    def write(self, span: slice, values: Tensor) -> None:
        """Do nothing: the values were changed in place."""

    def parts(self) -> dict[str, Tensor]:
        """Return the values."""
        return {"": self.values}


class ByteMoment:
    """A moving average in eight bits with a dynamic exponent, a float32 scale a block."""

    def __init__(self, size: int, device: torch.device, *, signed: bool, paged: bool) -> None:
        """Begin with zeros; ``paged`` keeps the bytes in pinned memory of the host."""
        self.device = device
        self.signed = signed
        place = torch.device("cpu") if paged else device
        self.codes = torch.zeros(size, dtype=torch.uint8, device=place, pin_memory=paged)
        blocks = -(-size // BLOCK)
        self.scales = torch.zeros(blocks, device=place, pin_memory=paged)

    def read(self, span: slice) -> Tensor:
        """Return the values of a span that begins at a block."""
        codes = self.codes[span].to(self.device, non_blocking=True)
        scales = self.scales[self._blocks(span)].to(self.device, non_blocking=True)
        return decode_blocks(codes, scales, BLOCK, signed=self.signed)

    def write(self, span: slice, values: Tensor) -> None:
        """Round values to eight bits."""
        codes = torch.empty_like(values, dtype=torch.uint8)
        blocks = self._blocks(span)
        scales = values.new_empty(blocks.stop - blocks.start)
        encode_blocks(values, codes, scales, BLOCK, signed=self.signed)
        self.codes[span].copy_(codes)
        self.scales[blocks].copy_(scales)

    def parts(self) -> dict[str, Tensor]:
        """Return codes and scales."""
        return {"": self.codes, ".scales": self.scales}

    def _blocks(self, span: slice) -> slice:
        return slice(span.start // BLOCK, -(-span.stop // BLOCK))


def make_moment(name: str, size: int, device: torch.device, *, signed: bool) -> Moment:
    """Return a moving average as the optimizer ``name`` keeps it."""
    if name == "adamw" or size < SMALLEST:
        return WideMoment(size, device)
    return ByteMoment(size, device, signed=signed, paged=name.startswith("paged"))


def spans(size: int) -> Iterator[slice]:
    """Yield the pieces that a tensor of ``size`` elements is updated in."""
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))


def state_of(moments: Mapping[str, Moment]) -> dict[str, NDArray[np.generic]]:
    """Return everything that is kept, by name."""
    return {
        f"{name}{suffix}": part.detach().cpu().numpy().copy()
        for name, moment in moments.items()
        for suffix, part in moment.parts().items()
    }


def restore(moments: Mapping[str, Moment], state: Arrays) -> None:
    """Take over what :func:`state_of` returned.

    Raises:
        ModelError: naming everything that is missing, unknown or of another size.
    """
    parts = {
        f"{name}{suffix}": part
        for name, moment in moments.items()
        for suffix, part in moment.parts().items()
    }
    wrong = [f"{name} is missing" for name in parts if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in parts]
    wrong += [
        f"{name} has {state[name].size} elements, expected {part.numel()}"
        for name, part in parts.items()
        if name in state and state[name].size != part.numel()
    ]
    if wrong:
        raise ModelError(f"The optimizer state does not fit: {'; '.join(sorted(wrong)[:8])}.")
    for name, part in parts.items():
        part.copy_(torch.from_numpy(np.array(state[name])).view(part.shape))
