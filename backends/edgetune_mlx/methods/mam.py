"""MAM adapter: the prefix's attention and the parallel adapter's half of a block."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from edgetune.methods.mam import Mam
from edgetune.shape import ModelShape
from edgetune_mlx.adaptation import Adapted, Arrays, Attended, Sublayer
from edgetune_mlx.methods.bottleneck import BottleneckAdaptation
from edgetune_mlx.methods.prefix import PrefixAdaptation


class MamAdaptation(Adapted):
    """Lets each part step in at its place."""

    def __init__(self, spec: Mam, shape: ModelShape, parameters: Mapping[str, mx.array]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._prefix = PrefixAdaptation(spec.prefix, shape, parameters)
        self._adapter = BottleneckAdaptation(spec.adapter, shape, parameters)

    def over(self, parameters: Arrays) -> MamAdaptation:
        """Return the same method with some tensors replaced in both parts."""
        other = super().over(parameters)
        other._prefix = self._prefix.over(parameters)
        other._adapter = self._adapter.over(parameters)
        return other

    def without_tensors(self) -> MamAdaptation:
        """Return the same method with nothing but the constants of both parts."""
        other = super().without_tensors()
        other._prefix = self._prefix.without_tensors()
        other._adapter = self._adapter.without_tensors()
        return other

    def everywhere(self, name: str) -> bool:
        """Return whether a tensor is the prefix's."""
        return self._prefix.everywhere(name)

    def attend(self, attended: Attended) -> mx.array:
        """Return the attention with the prefix."""
        return self._prefix.attend(attended)

    def sublayer(self, layer: int, which: Sublayer, x: mx.array, out: mx.array) -> mx.array:
        """Return a half's output with the adapter's."""
        return self._adapter.sublayer(layer, which, x, out)
