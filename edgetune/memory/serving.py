"""Bytes of several adapters over one base, and how many of them a budget has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from edgetune.choice import Choice
from edgetune.memory.batch_shape import Platform
from edgetune.memory.block_pass import LASTING, SizedMethod, beside
from edgetune.memory.estimate import MemoryEstimate
from edgetune.memory.generation import pass_bytes, row_bytes
from edgetune.memory.model import estimate
from edgetune.methods.base import Method
from edgetune.methods.planned import kinds
from edgetune.settings.spec import to_plain
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES

LEAST_ROW = 512
"""Tokens of a prompt and its answer that there is room for at least; shorter in shorter contexts."""


def adapter_bytes(shape: ModelShape, method: Method) -> int:
    """Return what a session holds of an adapter to use it: its tensors, and a norm for each row."""
    saved = method.on_disk()
    tensors = saved.tensors(shape)
    norms, _ = beside(SizedMethod(saved, shape, {}), shape, kinds(saved, shape, tensors))
    return FLOAT32_BYTES * sum(tensor.size for tensor in tensors) + norms // LASTING


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEstimate:
    """Bytes of a base with adapters that answer prompts; nothing is trained."""

    base: int
    """Weights and runtime."""
    adapters: tuple[int, ...]
    tokens: int
    """Of the row that there is room for at least."""
    row: int
    """Keys and values of that row, and what a pass takes for a moment."""
    opening: int
    """The peak while the base is opened, without adapters."""
    beyond: int = 0
    """What a pass with one of the adapters takes for a moment beyond the plan's own method."""

    @property
    def peak_bytes(self) -> int:
        """The peak with all adapters."""
        return self._least + sum(self.adapters)

    @property
    def _least(self) -> int:
        return max(self.base + self.row, self.opening)

    def first(self, budget: int) -> int:
        """Return how many of the adapters fit, the first ones in their order.

        >>> four = ServingEstimate(base=50, adapters=(10, 10, 10, 10), tokens=8, row=5, opening=60)
        >>> [four.first(budget) for budget in (59, 69, 70, 99, 100)], four.peak_bytes
        ([0, 0, 1, 3, 4], 100)
        """
        held = accumulate(self.adapters, initial=self._least)
        return max(0, sum(size <= budget for size in held) - 1)

    def further(self, budget: int) -> int:
        """Return for how many more adapters as large as the largest there is room."""
        return max(0, budget - self.peak_bytes) // max(self.adapters)

    def to_json(self) -> dict[str, Any]:
        """Return the parts and the peak."""
        return {**to_plain(self), "peak_bytes": self.peak_bytes}


def serving_estimate(
    shape: ModelShape,
    choice: Choice,
    memory: MemoryEstimate,
    platform: Platform,
    methods: Sequence[Method],
) -> ServingEstimate:
    """Return what a plan's base takes with an adapter of each of these methods."""
    saved = [method.on_disk() for method in methods]
    sizes = {method: adapter_bytes(shape, method) for method in dict.fromkeys(saved)}
    before = max(method.virtual_tokens + method.positions for method in saved)
    longest, tokens = choice.context + before, min(choice.context, LEAST_ROW)

    def passing(method: Method) -> int:
        own = replace(choice, method=method)
        return pass_bytes(shape, estimate(shape, own, platform), longest)

    beyond = max(0, max(map(passing, sizes)) - passing(choice.method))
    passes = pass_bytes(shape, memory, longest) + beyond
    parts = memory.parts
    return ServingEstimate(
        base=parts.weights + parts.runtime,
        adapters=tuple(sizes[method] for method in saved),
        tokens=tokens,
        row=row_bytes(shape, choice, tokens + before) + passes,
        opening=memory.phases.load - parts.adapter,
        beyond=beyond,
    )
