"""BitFit: the bias terms and nothing else (Ben-Zaken et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetune.errors import UsageError
from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ZEROS, Copy
from edgetune.methods.knobs import layers_knob, targets_knob
from edgetune.methods.targets import Target, biased_norms, select
from edgetune.methods.trained import trained_norm
from edgetune.network.ops import A
from edgetune.settings.spec import knob
from edgetune.shape import Linear, ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, StoredBase
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFit(Method):
    """Trains the biases of the targeted projections, zeros where there were none, and of norms."""

    kind: ClassVar[str] = "bitfit"
    mergeable: ClassVar[bool] = True
    format: ClassVar[str] = "edgetune.adapters.native:TypedFormat"
    rate_factor: ClassVar[float] = 1.5  # five forgets five times as much, see docs/methods.md
    reads_summands: ClassVar[bool] = False

    targets: tuple[str, ...] = targets_knob()
    layers: int | None = layers_knob()
    new_biases: bool = knob(True, "Add zero biases to targets that have none.")

    def select(self, shape: ModelShape) -> list[Target]:
        """Return the projections whose bias is trained.

        Raises:
            UsageError: if none of them has a bias and none may be added.
        """
        named = select(shape, self.targets, self.layers)
        found = [target for target in named if self.new_biases or target.linear.bias]
        if not found and not biased_norms(shape, self.layers):
            raise UsageError(
                f"This {shape.family} model has no biases to train. Leave out --no-new-biases."
            )
        return found

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return one bias a target (``outputs`` parameters) and one a norm that has one."""
        projections = [
            AdapterTensor(
                name=f"{target.module}.bias",
                shape=(target.linear.outputs,),
                initial=Copy(f"{target.module}.bias") if target.linear.bias else ZEROS,
                rescaled=True,
            )
            for target in self.select(shape)
        ]
        norms = [
            AdapterTensor(name=name, shape=(norm.size,), initial=Copy(name))
            for module, norm in biased_norms(shape, self.layers)
            for name in (f"{module}.bias",)
        ]
        return (*projections, *norms)

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection with its trained bias, if it has one."""
        ops, bias = block.ops, own.tensors.get(f"{block.module(linear)}.bias")
        if bias is None:
            return ops.linear(linear.role, x)
        return ops.add_bias(ops.linear(linear.role, x, bias=False), bias)

    def norm(self, block: Block[A], own: Adapted[A], role: str, x: A) -> A:
        """Return x normalised, with the trained bias if there is one."""
        return trained_norm(block, own, role, x)

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Replace the biases that there are; the others are new."""
        from edgetune.methods.merging import Changes, Replaced

        return Changes(
            changes={name: Replaced(x) for name, x in tensors.items() if name in base},
            added=tensors,
            biased=tuple(target for target in self.select(shape) if not target.linear.bias),
            without="--no-new-biases",
        )
