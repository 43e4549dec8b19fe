"""Norm tuning: the weights (and biases) of the norms and nothing else (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import Copy
from edgetune.methods.knobs import layers_knob
from edgetune.methods.targets import select_norms
from edgetune.methods.trained import trained_norm
from edgetune.network.ops import A
from edgetune.settings.spec import knob
from edgetune.shape import ModelShape, Norm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, StoredBase
    from edgetune.network.block import Block

PART = "ln_tuning_layers"
"""What PEFT calls the trained copy of a norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormTuning(Method):
    """Trains a copy of the norms, by default of all, the final one included."""

    kind: ClassVar[str] = "norm"
    mergeable: ClassVar[bool] = True
    format: ClassVar[str] = "edgetune.adapters.norm:NormFormat"
    peft_type: ClassVar[str] = "LN_TUNING"
    rate_factor: ClassVar[float] = 5.0
    reads_summands: ClassVar[bool] = False

    norms: tuple[str, ...] = knob(
        ("all",), "Norms trained by norm tuning: all, names or globs, comma-separated."
    )
    layers: int | None = layers_knob()

    def select(self, shape: ModelShape) -> list[tuple[str, Norm]]:
        """Return the trained norms with their full module paths."""
        return select_norms(shape, self.norms, self.layers)

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return the weight of each norm, and its bias where it has one."""
        return tuple(
            AdapterTensor(
                name=f"{module}.{PART}.{part}",
                shape=(norm.size,),
                initial=Copy(f"{module}.{part}"),
            )
            for module, norm in self.select(shape)
            for part in (("weight", "bias") if norm.bias else ("weight",))
        )

    def norm(self, block: Block[A], own: Adapted[A], role: str, x: A) -> A:
        """Return x normalised by the trained copy, if there is one."""
        return trained_norm(block, own, role, x, f".{PART}")

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Put the copies in the place of the norms."""
        from edgetune.methods.merging import Changes, Replaced

        own = {name.replace(f".{PART}.", "."): x for name, x in tensors.items()}
        return Changes(changes={name: Replaced(values) for name, values in own.items()})
