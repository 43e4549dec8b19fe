"""The moments of a training step at which its memory can be the largest.

While block l is computed, what lives is what the blocks before it keep. Blocks before the first
adapted one keep nothing, the checkpointed ones after it their input, the rest what their
backward pass needs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from edgetune.memory.block_pass import BlockPass
from edgetune.settings.spec import Offload

SLOTS = 2
"""Inputs that are on their way to the host or back at one time."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Live bytes at one moment of a step, above what lives between steps."""

    activations: int
    loss: int
    workspace: int
    gradients: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.activations + self.loss + self.workspace + self.gradients


class StepModel:
    """The moments of steps on rows of one shape, for any number of checkpointed blocks."""

    def __init__(
        self,
        blocks: Sequence[BlockPass],
        *,
        first: int,
        input_bytes: int,
        place: int,
        grown: Sequence[int],
        lent: Sequence[int],
        came_back: Sequence[int],
        gradients: int,
        tables: Sequence[int],
        tiled: bool = False,
    ) -> None:
        """Sum over the blocks once, so that a number of checkpointed ones is looked up.

        ``first`` is the first adapted block, ``input_bytes`` those of a block's input, ``place``
        what lives through a whole pass, ``grown`` the bytes of the gradients that are there when
        each block goes back, and before any has; ``gradients`` are those of all. ``lent`` are
        those of the keys and values that a block makes for later ones, too, ``came_back`` those of
        the gradients that later blocks gave them when each block goes back. ``tables`` are
        those of the rotation which are there when each block is computed; they live as long, unless
        all blocks that attend are ``tiled``.
        """
        self.blocks, self.first, self.input_bytes, self.place = blocks, first, input_bytes, place
        self.grown, self.gradients = grown, gradients
        self.tables, self.tiled = tables, tiled
        self.came_back = came_back
        self._kept = list(accumulate((block.kept for block in blocks), initial=0))
        self._lent = list(accumulate(lent, initial=0))
        self._alike: dict[BlockPass, list[int]] = {}
        for layer, block in enumerate(blocks):
            self._alike.setdefault(block, []).append(layer)

    def peak(self, checkpointed: int, *, offload: Offload, loss: int, update: int) -> Moment:
        """Return the moment of a step at which most bytes live."""
        moments = [
            *self._moments(checkpointed, offload, loss),
            Moment(0, 0, update, self.gradients),
        ]
        return max(moments, key=lambda moment: moment.total)

    def evaluation(self, loss: int) -> int:
        """Return the peak of a pass without gradients and of its loss."""
        tables = [0] * len(self.blocks) if self.tiled else self.tables
        blocks = (
            block.inference + self._lent[layers[-1]] + tables[layers[-1]]
            for block, layers in self._alike.items()
        )
        return self.place + self.input_bytes + max(loss + self._lent[-1] + tables[-1], *blocks)

    def _moments(self, checkpointed: int, offload: Offload, loss: int) -> Iterator[Moment]:
        first, last = self.first, len(self.blocks)
        cut = min(max(checkpointed, first), last)
        place = self.place + (self.tables[-1] if self._whole(cut) else 0)
        held = place + self._inputs(cut, offload, computed=0) + self._lent[cut]
        none = self.grown[last]
        yield Moment(held + self._kept[last] - self._kept[cut] + self.input_bytes, loss, 0, none)
        for layer in self._extremes(0, first):
            there = place + self.input_bytes + self._lent[layer]
            yield Moment(there, 0, self.blocks[layer].plain, none)
        for layer in self._extremes(first, cut):
            block, inputs = self.blocks[layer], place + self._inputs(layer + 1, offload)
            inputs += self._lent[layer]
            yield Moment(inputs, 0, block.plain, none)
            inputs += self.came_back[layer]
            yield Moment(inputs, 0, self.input_bytes + block.again, self.grown[layer])
        for layer in self._extremes(cut, last):
            block = self.blocks[layer]
            inputs = held + self._kept[layer] - self._kept[cut] + self.input_bytes
            yield Moment(inputs, 0, block.forward, none)
            inputs += self.came_back[layer]
            yield Moment(inputs, 0, self.input_bytes + block.backward, self.grown[layer])

    def _inputs(self, stop: int, offload: Offload, computed: int = 1) -> int:
        """Return the bytes of the inputs that the checkpointed blocks before ``stop`` hold.

        ``computed`` says how many of these blocks are computed now.
        """
        kept = stop - self.first
        there = {"none": kept, "host": SLOTS, "disk": computed}[offload]
        return self.input_bytes * min(kept, there)

    def _whole(self, cut: int) -> bool:
        """Return whether a block is computed at once that attends, so that all tables are there."""
        return cut < len(self.blocks) or not self.tiled

    def _extremes(self, start: int, stop: int) -> Iterator[int]:
        """Yield the first and the last block of each kind: bytes in between lie in between."""
        for layers in self._alike.values():
            low, high = bisect_left(layers, start), bisect_left(layers, stop)
            if low < high:
                yield layers[low]
                yield layers[high - 1]
