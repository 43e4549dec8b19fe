"""What merging does to each base tensor, by method; a mergeable method is one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.errors import UsageError
from edgetune.exporters.biases import new_biases
from edgetune.methods.bitfit import BitFit
from edgetune.methods.ia3 import Ia3, scales_inputs
from edgetune.methods.lora import LowRank
from edgetune.methods.norm import PART
from edgetune.methods.targets import Target
from edgetune.model import LocalModel
from edgetune.tensors.reader import read_tensor

Float32 = NDArray[np.float32]


class Update(Protocol):
    """The change of one stored tensor."""

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Change the rows ``start`` to ``stop`` of the tensor, in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What becomes of the base: tensors by the names of its shape, fields of its config."""

    changes: Mapping[str, Update]
    added: Mapping[str, Float32] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """Adds ``scale * left @ right``: left (rows, rank), right (rank, columns)."""

    left: Float32
    right: Float32
    scale: float

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Add the rows of the product."""
        delta = self.left[start:stop] @ self.right
        delta *= self.scale
        values += delta


@dataclass(frozen=True, slots=True)
class Scaled:
    """Multiplies rows (scale (rows, 1)) or columns (scale (1, columns)) after another change."""

    scale: Float32
    before: Update | None = None

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Change and scale the rows."""
        if self.before is not None:
            self.before.apply(values, start, stop)
        values *= self.scale[start:stop] if self.scale.shape[1] == 1 else self.scale


@dataclass(frozen=True, slots=True)
class Replaced:
    """Takes other values."""

    values: Float32

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Copy the rows."""
        values[...] = self.values[start:stop]


@dataclass(frozen=True, slots=True)
class Normalised:
    """Gives the rows, after another change, the norms ``magnitude`` (rows,)."""

    before: Update
    magnitude: Float32

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Change, normalise and scale the rows."""
        self.before.apply(values, start, stop)
        norms = np.sqrt(np.square(values, dtype=np.float64).sum(1))
        values *= (self.magnitude[start:stop] / norms).astype(np.float32)[:, None]


def merge_of(adapter: LoadedAdapter, model: LocalModel) -> Merge:
    """Return what merging an adapter changes.

    Raises:
        UsageError: if the adapter's method cannot be merged, or the merged model not be expressed.
    """
    kind = adapter.method.kind
    if kind not in _MERGES:
        raise UsageError(
            f"{kind} cannot be merged into the weights (supported: {', '.join(_MERGES)}). "
            "Export the adapter itself: --to peft."
        )
    return _MERGES[kind](adapter, model)


def _lora(adapter: LoadedAdapter, model: LocalModel) -> Merge:
    lora = cast("LowRank", adapter.method)
    targets = lora.select(model.shape)
    return Merge(changes={f"{x.module}.weight": _low_rank(adapter, x) for x in targets})


def _low_rank(adapter: LoadedAdapter, target: Target) -> LowRankUpdate:
    a = adapter.tensors[f"{target.module}.lora_A.weight"]
    b = adapter.tensors[f"{target.module}.lora_B.weight"]
    left, right = (a.T, b.T) if target.linear.transposed else (b, a)
    return LowRankUpdate(left, right, cast("LowRank", adapter.method).scale_of(target))


def _dora(adapter: LoadedAdapter, model: LocalModel) -> Merge:
    changes: dict[str, Update] = {}
    for target in cast("LowRank", adapter.method).select(model.shape):
        name, update = f"{target.module}.weight", _low_rank(adapter, target)
        magnitude = adapter.tensors[f"{target.module}.lora_magnitude_vector"]
        if target.linear.transposed:
            scale = magnitude / _column_norms(model, name, update)
            changes[name] = Scaled(scale.astype(np.float32)[None, :], update)
        else:
            changes[name] = Normalised(update, magnitude)
    return Merge(changes=changes)


def _column_norms(model: LocalModel, name: str, update: Update) -> NDArray[np.float64]:
    """Return the norms of a changed matrix's columns: one matrix is held at a time."""
    values = read_tensor(model.tensors[name]).astype(np.float32)
    update.apply(values, 0, len(values))
    norms: NDArray[np.float64] = np.sqrt(np.square(values, dtype=np.float64).sum(0))
    return norms


def _ia3(adapter: LoadedAdapter, model: LocalModel) -> Merge:
    changes: dict[str, Update] = {}
    for target in cast("Ia3", adapter.method).select(model.shape):
        scale = adapter.tensors[f"{target.module}.ia3_l"]
        turned = scale.T if target.linear.transposed else scale
        changes[f"{target.module}.weight"] = Scaled(turned)
        if target.linear.bias and not scales_inputs(target.linear):
            name = f"{target.module}.bias"
            values = read_tensor(model.tensors[name]).astype(np.float32)
            changes[name] = Replaced(values * scale[:, 0])
    return Merge(changes=changes)


def _bitfit(adapter: LoadedAdapter, model: LocalModel) -> Merge:
    trained = adapter.tensors
    changes = {name: Replaced(trained[name]) for name in trained if name in model.tensors}
    targets = cast("BitFit", adapter.method).select(model.shape)
    added, config = new_biases([x for x in targets if not x.linear.bias], trained, model.shape)
    return Merge(changes=changes, added=added, config=config)


def _norm(adapter: LoadedAdapter, _: LocalModel) -> Merge:
    copies = {name.replace(f".{PART}.", "."): x for name, x in adapter.tensors.items()}
    return Merge(changes={name: Replaced(values) for name, values in copies.items()})


def _full(adapter: LoadedAdapter, model: LocalModel) -> Merge:
    turned = {
        f"{model.shape.block(layer)}{linear.module}.weight"
        for layer in range(model.shape.layers)
        for linear in model.shape.linears
        if linear.transposed
    }
    tensors = adapter.tensors.items()
    return Merge(changes={n: Replaced(x.T if n in turned else x) for n, x in tensors})


_MERGES: Final[Mapping[str, Callable[[LoadedAdapter, LocalModel], Merge]]] = {
    "lora": _lora,
    "dora": _dora,
    "ia3": _ia3,
    "bitfit": _bitfit,
    "norm": _norm,
    "full": _full,
}
