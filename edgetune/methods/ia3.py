"""IA3: elementwise scales of keys, values and inner activations (Liu et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ONES
from edgetune.methods.knobs import layers_knob, targets_knob
from edgetune.methods.targets import Target, select
from edgetune.network.ops import A
from edgetune.shape import Linear, ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, StoredBase, Update
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Ia3(Method):
    """Scales the outputs of the targets; of an MLP's output projection, the inputs."""

    kind: ClassVar[str] = "ia3"
    mergeable: ClassVar[bool] = True
    format: ClassVar[str] = "edgetune.adapters.ia3:Ia3Format"
    peft_type: ClassVar[str] = "IA3"
    rate_factor: ClassVar[float] = 30.0  # ten learns less, see docs/methods.md

    targets: tuple[str, ...] = targets_knob("keys-values", "mlp-output")
    layers: int | None = layers_knob()

    def select(self, shape: ModelShape) -> list[Target]:
        """Return the scaled projections."""
        return select(shape, self.targets, self.layers)

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return one scale a target: (outputs, 1), or (1, inputs) where inputs are scaled."""
        return tuple(
            AdapterTensor(
                name=f"{target.module}.ia3_l",
                shape=(1, linear.inputs) if scales_inputs(linear) else (linear.outputs, 1),
                initial=ONES,
                rescaled=False,
            )
            for target in self.select(shape)
            for linear in (target.linear,)
        )

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection, scaled where it is a target."""
        ops, scale = block.ops, own.tensors.get(f"{block.module(linear)}.ia3_l")
        if scale is None:
            return ops.linear(linear.role, x)
        if scales_inputs(linear):
            return ops.linear(linear.role, ops.times(x, scale))
        return ops.times(ops.linear(linear.role, x), scale)

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Scale rows, or columns, and the biases behind them."""
        from edgetune.methods.merging import Changes, Replaced, Scaled

        changes: dict[str, Update] = {}
        for target in self.select(shape):
            scale = tensors[f"{target.module}.ia3_l"]
            changes[f"{target.module}.weight"] = Scaled(
                scale.T if target.linear.transposed else scale
            )
            if target.linear.bias and not scales_inputs(target.linear):
                name = f"{target.module}.bias"
                changes[name] = Replaced(base.read(name) * scale[:, 0])
        return Changes(changes=changes)


def scales_inputs(linear: Linear) -> bool:
    """Return whether a projection's inputs are scaled instead of its outputs."""
    return linear.role == "down"
