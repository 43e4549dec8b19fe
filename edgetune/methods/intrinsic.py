"""Training in a random subspace of all weights, as intrinsic dimensions are measured.

Aghajanyan et al. 2020, equations 3 and 4 (SAID), with the Fastfood transform of Le et al. 2013.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, ClassVar, Final

from edgetune.errors import UsageError
from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ONES, ZEROS, Normal, Order, Signs
from edgetune.methods.knobs import targets_knob
from edgetune.methods.targets import Target, select
from edgetune.network.ops import A
from edgetune.settings.spec import Interval, knob
from edgetune.shape import Linear, ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, StoredBase
    from edgetune.network.block import Block

VECTOR, SIGNS, ORDER = "intrinsic.vector", "intrinsic.signs", "intrinsic.order"
"""The trained vector, and the constants of its projection that all targets share."""

SCALE_RATE: Final = 10.0
"""Learning rate of the scales, which start at 1: a relative change like that of LoRA's update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intrinsic(Method):
    """``W' = W + s P v``: v (d) is trained and shared by all targets, s is a block's scale.

    P is Fastfood's ``H G R H B``, cut to the weights of a target: H Walsh-Hadamard matrices (d x d)
    one beside the other, B random signs, R a permutation (both shared), G Gaussian numbers of each
    target. Their deviation makes ``P^T P`` over all D weights the identity in expectation. The rate
    of v grows with ``sqrt(D / d)``: a weight moves as far in a step as in full fine-tuning.
    """

    kind: ClassVar[str] = "intrinsic"
    mergeable: ClassVar[bool] = True
    format: ClassVar[str] = "edgetune.adapters.native:TypedFormat"
    rate_factor: ClassVar[float] = 3.0  # thirty times full tuning's lowers the loss the most

    dimension: int = knob(
        1024, "Trained numbers of --method intrinsic, a power of two.", interval=Interval(low=2)
    )
    targets: tuple[str, ...] = targets_knob()

    def __post_init__(self) -> None:
        """Refuse a dimension without a Walsh-Hadamard matrix."""
        Method.__post_init__(self)
        if self.dimension & (self.dimension - 1):
            below = 1 << (self.dimension.bit_length() - 1)
            raise UsageError(
                f"--dimension must be a power of two; found {self.dimension}. {below} and "
                f"{2 * below} are the nearest."
            )

    def select(self, shape: ModelShape) -> list[Target]:
        """Return the projections whose weights move."""
        return select(shape, self.targets, None)

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return v, a scale a block, and the constants: D + 2 d numbers, filled up to whole d's."""
        targets, size = self.select(shape), self.dimension
        total = sum(weights(target.linear) for target in targets)
        normal, rate = Normal(1 / sqrt(size * total)), sqrt(total / size)
        shared = (
            AdapterTensor(name=VECTOR, shape=(size,), initial=ZEROS, rate=rate),
            AdapterTensor(name=SIGNS, shape=(size,), initial=Signs(), trained=False),
            AdapterTensor(name=ORDER, shape=(size,), initial=Order(), trained=False),
        )
        return (*shared, *self._scales(shape, targets), *self._gaussians(targets, normal))

    def _scales(self, shape: ModelShape, targets: list[Target]) -> Iterator[AdapterTensor]:
        for layer in dict.fromkeys(target.layer for target in targets):
            name = _scale(shape, layer)
            yield AdapterTensor(name=name, shape=(1,), initial=ONES, rate=SCALE_RATE)

    def _gaussians(self, targets: list[Target], normal: Normal) -> Iterator[AdapterTensor]:
        for target in targets:
            size = (-(-weights(target.linear) // self.dimension), self.dimension)
            name = _gaussian(target.module)
            yield AdapterTensor(name=name, shape=size, initial=normal, trained=False)

    def everywhere(self, name: str) -> bool:
        """Return whether a tensor is the vector or one of the shared constants."""
        return name in {VECTOR, SIGNS, ORDER}

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection, by moved weights where it is a target."""
        ops, gaussian = block.ops, own.tensors.get(_gaussian(block.module(linear)))
        if gaussian is None:
            return ops.linear(linear.role, x)
        vector, signs, order = (own.tensors[name] for name in (VECTOR, SIGNS, ORDER))
        scale = own.tensors[_scale(block.shape, block.layer or 0)]
        size = (linear.outputs, linear.inputs)
        moved = ops.fastfood(vector, signs, order, gaussian, scale, size)
        return ops.add(ops.linear(linear.role, x), ops.trained_linear(x, moved))

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Add what the weights moved by."""
        from edgetune.methods.merging import Added, Changes

        return Changes(
            changes={
                f"{target.module}.weight": Added(self.moved(shape, target, tensors))
                for target in self.select(shape)
            }
        )

    def moved(
        self, shape: ModelShape, target: Target, tensors: Mapping[str, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Return ``s P v`` for a target, as its matrix is stored."""
        order = tensors[ORDER].astype(int)
        mixed = hadamard(tensors[VECTOR] * tensors[SIGNS])[order]
        flat = hadamard(tensors[_gaussian(target.module)] * mixed).reshape(-1)
        linear = target.linear
        found = flat[: weights(linear)].reshape(linear.outputs, linear.inputs)
        found = found * tensors[_scale(shape, target.layer)]
        return found.T if linear.transposed else found


def hadamard(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of x (..., n) times the Walsh-Hadamard matrix of n, a power of two.

    >>> import numpy as np
    >>> hadamard(np.array([1.0, 0.0, 2.0, 0.0])).tolist()
    [3.0, 3.0, -1.0, -1.0]
    """
    import numpy as np

    size, half = x.shape[-1], 1
    while half < size:
        pairs = x.reshape(-1, 2, half)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(x.shape)
        half *= 2
    return x


def weights(linear: Linear) -> int:
    """Return the numbers of a projection's matrix."""
    return linear.outputs * linear.inputs


def _gaussian(module: str) -> str:
    return f"{module}.intrinsic_gaussian"


def _scale(shape: ModelShape, layer: int) -> str:
    return f"{shape.block(layer)}intrinsic_scale"
