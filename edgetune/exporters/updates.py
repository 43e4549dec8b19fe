"""What merging an adapter does to each tensor of its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.errors import UsageError
from edgetune.exporters.biases import new_biases
from edgetune.methods import METHODS, method_class
from edgetune.methods.merging import Update
from edgetune.model import LocalModel
from edgetune.tensors.reader import read_tensor

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What becomes of the base: tensors by the names of its shape, fields of its config.

    ``without`` is the method's flag that adds none of the biases in ``added``, if it has one.
    """

    changes: Mapping[str, Update]
    added: Mapping[str, Float32] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    without: str | None = None


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The tensors of a model's files, as :class:`edgetune.methods.merging.StoredBase` has them."""

    model: LocalModel

    def __contains__(self, name: object, /) -> bool:
        """Return whether there is a tensor of this name."""
        return name in self.model.tensors

    def read(self, name: str) -> Float32:
        """Return a tensor, whole."""
        return read_tensor(self.model.tensors[name]).astype(np.float32)


def merge_of(adapter: LoadedAdapter, model: LocalModel) -> Merge:
    """Return what merging an adapter changes.

    Raises:
        UsageError: if the adapter's method cannot be merged, or the merged model not be expressed.
    """
    method, shape = adapter.method, model.shape
    if not method.mergeable:
        known = ", ".join(kind for kind in METHODS if method_class(kind).mergeable)
        raise UsageError(
            f"{method.kind} cannot be merged into the weights (supported: {known}). "
            "Export the adapter itself: --to peft."
        )
    found = method.merge(shape, adapter.tensors, StoredTensors(model))
    if not found.biased:
        return Merge(changes=found.changes)
    added, config = new_biases(found, shape)
    return Merge(changes=found.changes, added=added, config=config, without=found.without)
