"""Norm tuning: trained copies of the norms in place of the frozen ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.norm import PART, NormTuning
from edgetune.shape import ModelShape, NormKind
from edgetune_torch.adaptation import Adapted
from edgetune_torch.trained import TrainedNorms


class NormAdaptation(Adapted):
    """Normalises with the trained gains and shifts."""

    def __init__(
        self, spec: NormTuning, shape: ModelShape, parameters: Mapping[str, Parameter]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._norms = TrainedNorms(self, f".{PART}")

    def norm(
        self,
        layer: int | None,
        role: str,
        x: Tensor,
        kind: NormKind,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Return x normalised by the trained copy, if there is one."""
        return self._norms(layer, role, x, kind, weight, bias)
