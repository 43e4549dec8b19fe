"""What merging does to each base tensor, by method; a mergeable method is one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgetune.adapter_file import LoadedAdapter
from edgetune.errors import UsageError
from edgetune.methods.lora import Lora
from edgetune.shape import ModelShape

Float32 = NDArray[np.float32]


class Update(Protocol):
    """The change of one stored tensor."""

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Change the rows ``start`` to ``stop`` of the tensor, in place."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adds ``scale * left @ right``: left (rows, rank), right (rank, columns)."""

    left: Float32
    right: Float32
    scale: float

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Add the rows of the product."""
        delta = self.left[start:stop] @ self.right
        delta *= self.scale
        values += delta


def updates(adapter: LoadedAdapter, shape: ModelShape) -> dict[str, Update]:
    """Return the changed base tensors by name.

    Raises:
        UsageError: if the adapter's method cannot be merged.
    """
    kind = adapter.method.kind
    if kind not in _MERGES:
        raise UsageError(
            f"{kind} cannot be merged into the weights (supported: {', '.join(_MERGES)}). "
            "Export the adapter itself: --to peft."
        )
    return _MERGES[kind](adapter, shape)


def _lora(adapter: LoadedAdapter, shape: ModelShape) -> dict[str, Update]:
    lora = cast("Lora", adapter.method)
    merged: dict[str, Update] = {}
    for target in lora.select(shape):
        a = adapter.tensors[f"{target.module}.lora_A.weight"]
        b = adapter.tensors[f"{target.module}.lora_B.weight"]
        left, right = (a.T, b.T) if target.linear.transposed else (b, a)
        merged[f"{target.module}.weight"] = LowRank(left, right, lora.scale)
    return merged


_MERGES: Final[Mapping[str, Callable[[LoadedAdapter, ModelShape], dict[str, Update]]]] = {
    "lora": _lora
}
