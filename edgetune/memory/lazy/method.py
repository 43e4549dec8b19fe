"""A method on MLX whose tensors are arrays without numbers."""

from __future__ import annotations

from collections.abc import Mapping

from edgetune.memory.lazy.graph import Array
from edgetune.methods.adapted import Adapted
from edgetune.network.ops import Dropout


class LazyMethod(Adapted[Array]):
    """A method whose tensors are arrays without numbers."""

    def dropout(self, fraction: float, layer: int | None, role: str) -> Dropout | None:
        """Return what is dropped in training: a mask of any seed."""
        del layer, role
        return Dropout(fraction, 0) if self.training and fraction else None

    def with_tensors(self, tensors: Mapping[str, Array], *, training: bool) -> LazyMethod:
        """Return the same method for one pass of a block that has these tensors."""
        other = self.drawing("" if training else None)
        other.tensors = tensors
        return other
