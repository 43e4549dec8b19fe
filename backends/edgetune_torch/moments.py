"""The moving averages of AdamW, in float32 or in eight bits, on the device or in host memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.settings.spec import PAGED
from edgetune_torch.arrays import array_of
from edgetune_torch.dynamic_map import decode_into, encode_into

BLOCK = 256
"""Elements that share a scale (Dettmers 2022, section 2.1)."""

SMALLEST = 4096
"""Tensors of fewer elements stay in float32: they cost little and matter much."""

CPU_CHUNK, CARD_CHUNK = 1 << 16, 1 << 20
"""Elements that are updated at a time, whole blocks. A CPU keeps them in its caches."""

Arrays = Mapping[str, NDArray[np.generic]]


class Moment(Protocol):
    """One moving average of one tensor, by flat spans. Nothing here allocates but the first."""

    def read(self, span: slice, buffers: MomentBuffers) -> Tensor:
        """Return float32 values, which must not be changed; they may lie in the buffers."""

    def encode(self, span: slice, buffers: MomentBuffers, spare: Tensor) -> None:
        """Bring the buffers' values into the form that is kept; ``spare`` (M,) is overwritten."""

    def commit(self, span: slice, buffers: MomentBuffers) -> None:
        """Keep what was encoded; done again, it changes nothing."""

    def parts(self) -> dict[str, Tensor]:
        """Return what is kept, by a suffix of the state's name."""


class MomentBuffers:
    """Memory for one span of a moving average: its values, and what they are encoded in."""

    def __init__(self, size: int, device: torch.device, index: Tensor | None) -> None:
        """Allocate ``size`` elements; ``index`` (size,) int32 is for those kept in eight bits."""
        self.values = torch.empty(size, device=device)
        self._index = index
        if index is not None:
            self._codes = torch.empty(size, dtype=torch.uint8, device=device)
            self._scales = torch.empty(size // BLOCK, device=device)

    def encoded(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return values and index of whole blocks, codes (count,) and scales."""
        assert self._index is not None
        blocks = -(-count // BLOCK)
        whole = blocks * BLOCK
        return self.values[:whole], self._index[:whole], self._codes[:count], self._scales[:blocks]


class WideMoment:
    """A moving average in float32."""

    def __init__(self, size: int, device: torch.device) -> None:
        """Begin with zeros."""
        self.values = torch.zeros(size, device=device)

    def read(self, span: slice, buffers: MomentBuffers) -> Tensor:  # noqa: ARG002
        """Return the values themselves."""
        return part(self.values, span)

    def encode(self, span: slice, buffers: MomentBuffers, spare: Tensor) -> None:
        """Do nothing: values are kept as they are."""

    def commit(self, span: slice, buffers: MomentBuffers) -> None:
        """Keep the values."""
        part(self.values, span).copy_(buffers.values[: span.stop - span.start])

    def parts(self) -> dict[str, Tensor]:
        """Return the values."""
        return {"": self.values}


class ByteMoment:
    """A moving average in eight bits with a dynamic exponent, a float32 scale a block."""

    def __init__(self, size: int, device: torch.device, *, signed: bool, paged: bool) -> None:
        """Begin with zeros; ``paged`` keeps the bytes in pinned memory of the host."""
        self.signed = signed
        place = torch.device("cpu") if paged else device
        self.codes = torch.zeros(size, dtype=torch.uint8, device=place, pin_memory=paged)
        blocks = -(-size // BLOCK)
        self.scales = torch.zeros(blocks, device=place, pin_memory=paged)

    def read(self, span: slice, buffers: MomentBuffers) -> Tensor:
        """Decode the values of a span that begins at a block."""
        values, index, codes, scales = buffers.encoded(span.stop - span.start)
        codes.copy_(self.codes[span], non_blocking=True)
        scales.copy_(self.scales[_blocks(span)], non_blocking=True)
        decode_into(values, codes, scales, BLOCK, signed=self.signed, index=index)
        return values[: len(codes)]

    def encode(self, span: slice, buffers: MomentBuffers, spare: Tensor) -> None:
        """Round the values to eight bits."""
        values, index, codes, scales = buffers.encoded(span.stop - span.start)
        values[len(codes) :].zero_()
        spare = spare[: len(values)]
        encode_into(values, codes, scales, BLOCK, signed=self.signed, spare=spare, index=index)

    def commit(self, span: slice, buffers: MomentBuffers) -> None:
        """Keep codes and scales."""
        _, _, codes, scales = buffers.encoded(span.stop - span.start)
        self.codes[span].copy_(codes)
        self.scales[_blocks(span)].copy_(scales)

    def parts(self) -> dict[str, Tensor]:
        """Return codes and scales."""
        return {"": self.codes, ".scales": self.scales}


def _blocks(span: slice) -> slice:
    return slice(span.start // BLOCK, -(-span.stop // BLOCK))


def in_bytes(name: str, size: int) -> bool:
    """Tell whether the optimizer ``name`` keeps averages of this size in eight bits."""
    return name != "adamw" and size >= SMALLEST


def make_moment(name: str, size: int, device: torch.device, *, signed: bool) -> Moment:
    """Return a moving average as the optimizer ``name`` keeps it."""
    if not in_bytes(name, size):
        return WideMoment(size, device)
    return ByteMoment(size, device, signed=signed, paged=name == PAGED)


def chunk_of(device: torch.device) -> int:
    """Return how many elements are updated at a time."""
    return CPU_CHUNK if device.type == "cpu" else CARD_CHUNK


def part(tensor: Tensor, span: slice) -> Tensor:
    """Return a span of a flat tensor; a view costs a microsecond, and most tensors are one span."""
    return tensor if span.stop - span.start == tensor.numel() else tensor[span]


def spans(size: int, chunk: int) -> Iterator[slice]:
    """Yield the pieces that a tensor of ``size`` elements is updated in."""
    for start in range(0, size, chunk):
        yield slice(start, min(start + chunk, size))


def state_of(
    moments: Mapping[str, Moment], *, copied: bool = True
) -> dict[str, NDArray[np.generic]]:
    """Return everything that is kept, by name."""
    return {
        f"{name}{suffix}": array_of(part, copied=copied)
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
