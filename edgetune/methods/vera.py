"""VeRA: random matrices that all targets share, scaled by trained vectors (Kopiczko et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ZEROS, Constant, Uniform
from edgetune.methods.knobs import dropout_knob, layers_knob, targets_knob
from edgetune.methods.targets import Target, select
from edgetune.network.ops import A
from edgetune.settings.spec import Interval, knob
from edgetune.shape import Linear, ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, LowRankUpdate, StoredBase
    from edgetune.network.block import Block

SHARED_A, SHARED_B = "vera_A", "vera_B"
"""Names of the random matrices; each target takes their first columns, or rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vera(Method):
    """``h = W x + b * (B (d * (A x)))`` (eq. 2): A and B are random and stay, d and b are trained.

    A is (rank, widest input), B (widest output, rank).
    """

    kind: ClassVar[str] = "vera"
    mergeable: ClassVar[bool] = True
    format: ClassVar[str] = "edgetune.adapters.vera:VeraFormat"
    peft_type: ClassVar[str] = "VERA"
    rate_factor: ClassVar[float] = 10.0
    reads_summands: ClassVar[bool] = False

    vera_rank: int = knob(256, "Rank of vera's shared random matrices.", interval=Interval(low=1))
    vera_initial: float = knob(0.1, "Initial value of vera's inner vectors.")
    dropout: float = dropout_knob()
    targets: tuple[str, ...] = targets_knob()
    layers: int | None = layers_knob()

    def select(self, shape: ModelShape) -> list[Target]:
        """Return the adapted projections of a model."""
        return select(shape, self.targets, self.layers)

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return A and B, then d (rank) and b (outputs) of every target, which are trained."""
        targets, rank = self.select(shape), self.vera_rank
        inputs = max(target.linear.inputs for target in targets)
        outputs = max(target.linear.outputs for target in targets)
        shared = (
            _random(SHARED_A, (rank, inputs)),
            _random(SHARED_B, (outputs, rank)),
        )
        own = (tensor for target in targets for tensor in self._vectors(target))
        return (*shared, *own)

    def everywhere(self, name: str) -> bool:
        """Return whether a tensor is one of the shared matrices."""
        return name in {SHARED_A, SHARED_B}

    @property
    def draws(self) -> bool:
        """Whether a mask is drawn in training."""
        return self.dropout > 0

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection, with the update where it is a target."""
        ops, module = block.ops, block.module(linear)
        outer = own.tensors.get(f"{module}.vera_lambda_b")
        if outer is None:
            return ops.linear(linear.role, x)
        a = ops.some_columns(own.tensors[SHARED_A], slice(linear.inputs))
        shared = ops.some_rows(own.tensors[SHARED_B], slice(linear.outputs))
        b = ops.scaled_matrix(outer, shared, own.tensors[f"{module}.vera_lambda_d"])
        dropout = own.dropout(self.dropout, block.layer, linear.role)
        return ops.lora_linear(linear.role, x, a, b, 1.0, dropout, fixed=True)

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Add the updates."""
        from edgetune.methods.merging import Changes

        targets = self.select(shape)
        return Changes(changes={f"{x.module}.weight": self.update(x, tensors) for x in targets})

    def update(self, target: Target, tensors: Mapping[str, NDArray[np.float32]]) -> LowRankUpdate:
        """Return the change of a target's stored matrix."""
        from edgetune.methods.merging import LowRankUpdate

        linear, module = target.linear, target.module
        a = tensors[SHARED_A][:, : linear.inputs]
        b = tensors[SHARED_B][: linear.outputs] * tensors[f"{module}.vera_lambda_d"]
        b *= tensors[f"{module}.vera_lambda_b"][:, None]
        left, right = (a.T, b.T) if linear.transposed else (b, a)
        return LowRankUpdate(left, right, 1.0)

    def _vectors(self, target: Target) -> tuple[AdapterTensor, AdapterTensor]:
        inner, outer = (f"{target.module}.vera_lambda_{part}" for part in "db")
        outputs, start = (target.linear.outputs,), Constant(self.vera_initial)
        return (
            AdapterTensor(name=inner, shape=(self.vera_rank,), initial=start, rescaled=False),
            AdapterTensor(name=outer, shape=outputs, initial=ZEROS, rescaled=True),
        )


def bound(inputs: int) -> float:
    """Return the largest number of a shared matrix: Kaiming's for so many inputs, as in PEFT."""
    return sqrt(6 / inputs)


def _random(name: str, size: tuple[int, int]) -> AdapterTensor:
    return AdapterTensor(name=name, shape=size, initial=Uniform(bound(size[1])), trained=False)
