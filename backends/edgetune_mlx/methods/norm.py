"""Norm tuning: trained copies of the norms in place of the frozen ones."""

from __future__ import annotations

import mlx.core as mx

from edgetune.methods.norm import PART
from edgetune.shape import NormKind
from edgetune_mlx.adaptation import Adapted
from edgetune_mlx.trained import trained_norm


class NormAdaptation(Adapted):
    """Normalises with the trained gains and shifts."""

    def norm(
        self,
        layer: int | None,
        role: str,
        x: mx.array,
        kind: NormKind,
        weight: mx.array,
        bias: mx.array | None,
    ) -> mx.array:
        """Return x normalised by the trained copy, if there is one."""
        return trained_norm(self, layer, role, x, kind, weight, bias, f".{PART}")
