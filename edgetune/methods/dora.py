"""DoRA: a direction that LoRA turns and a magnitude of its own (Liu et al. 2024, eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgetune.methods.base import AdapterTensor
from edgetune.methods.initial import RowNorms
from edgetune.methods.lora import LowRank, pair_of
from edgetune.methods.targets import Target
from edgetune.network.ops import A
from edgetune.shape import Linear, ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, StoredBase, Update
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Dora(LowRank):
    """``W' = m * (W + scale * B A) / |W + scale * B A|`` by output row, m starting at ``|W|``."""

    kind: ClassVar[str] = "dora"
    reads_summands: ClassVar[bool] = True

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection, with direction and magnitude adapted where it is a target.

        The norm is a constant of the backward pass (section 4.3).
        """
        ops, pair, role = block.ops, pair_of(block, own, linear), linear.role
        if pair is None:
            return ops.linear(role, x)
        scale, dropout = self.scale_at_place(block, linear), self.dropped(block, own, linear)
        y = ops.lora_linear(role, x, *pair, scale, dropout, bias=False)
        magnitude = own.tensors[f"{block.module(linear)}.lora_magnitude_vector"]
        norms = ops.row_norms((block.layer or 0, role), *pair, scale, own.kept)
        return ops.bias(role, ops.times_ratio(y, magnitude, norms))

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Add the updates and give the rows their magnitudes."""
        import numpy as np

        from edgetune.methods.merging import Changes, Normalised, Scaled

        changes: dict[str, Update] = {}
        for target in self.select(shape):
            name, update = f"{target.module}.weight", self.update(target, tensors)
            magnitude = tensors[f"{target.module}.lora_magnitude_vector"]
            if not target.linear.transposed:
                changes[name] = Normalised(update, magnitude)
                continue
            values = base.read(name)  # one matrix is held at a time
            update.apply(values, 0, len(values))
            norms = np.sqrt(np.square(values, dtype=np.float64).sum(0))
            changes[name] = Scaled((magnitude / norms).astype(np.float32)[None, :], update)
        return Changes(changes=changes | self.module_changes(shape, tensors))

    def of_target(self, target: Target) -> tuple[AdapterTensor, ...]:
        """Return A, B and m: LoRA's parameters and ``outputs`` more."""
        magnitude = AdapterTensor(
            name=f"{target.module}.lora_magnitude_vector",
            shape=(target.linear.outputs,),
            initial=RowNorms(f"{target.module}.weight"),
            rescaled=True,
        )
        return (*self.plain(target), magnitude)
