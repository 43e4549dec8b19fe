"""MAM adapter: the prefix's attention and the parallel adapter's half of a block."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.mam import Mam
from edgetune.shape import ModelShape
from edgetune_torch.adaptation import Adapted, Attended, Sublayer
from edgetune_torch.methods.bottleneck import BottleneckAdaptation
from edgetune_torch.methods.prefix import PrefixAdaptation


class MamAdaptation(Adapted):
    """Lets each part step in at its place."""

    def __init__(self, spec: Mam, shape: ModelShape, parameters: Mapping[str, Parameter]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._prefix = PrefixAdaptation(spec.prefix, shape, parameters)
        self._adapter = BottleneckAdaptation(spec.adapter, shape, parameters)

    def attend(self, attended: Attended) -> Tensor:
        """Return the attention with the prefix."""
        return self._prefix.attend(attended)

    def sublayer(self, layer: int, which: Sublayer, x: Tensor, out: Tensor) -> Tensor:
        """Return a half's output with the adapter's."""
        return self._adapter.sublayer(layer, which, x, out)
