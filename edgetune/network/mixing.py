"""What mixers without attention make of what their projections made.

The frozen tensors of a mixer are in the operations; what is trained of them stands in for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgetune.mixer import GatedDelta, MixerRole, Recurrent, ShortConvolution, StateSpace
from edgetune.network.ops import A, Ops


def mix(
    ops: Ops[A], mixer: Recurrent | None, inputs: Sequence[A], trained: Mapping[MixerRole, A]
) -> A:
    """Return what the output projection of a mixer reads (B, S, ...)."""
    match mixer:
        case ShortConvolution():
            (x,) = inputs
            weight, bias = trained.get("conv"), trained.get("conv_bias")
            return ops.short_convolution(x, weight, bias)
        case GatedDelta():
            x, b, a = inputs
            get = trained.get
            return ops.gated_delta(x, b, a, get("conv"), get("a_log"), get("dt_bias"))
        case StateSpace():
            x, steps = inputs
            return ops.state_space(x, steps, trained)
        case None:
            raise TypeError("attention attends: it has a place of its own")
