"""Full fine-tuning, or that of the last blocks: the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, get_args

from edgetune.altup import AltUpRole
from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import Copy
from edgetune.methods.knobs import layers_knob
from edgetune.methods.targets import last_blocks
from edgetune.methods.trained import trained_norm
from edgetune.mixer import XieluRole
from edgetune.network.ops import A
from edgetune.shape import Linear, ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, StoredBase
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Full(Method):
    """Trains every tensor of the last blocks and the final norm, as float32 copies.

    Embeddings and head stay as they are: they are large, and what is learned of them with few
    examples concerns few tokens. A projection's copy is (outputs, inputs).
    """

    kind: ClassVar[str] = "full"
    mergeable: ClassVar[bool] = True
    format: ClassVar[str] = "edgetune.adapters.native:TypedFormat"
    rate_factor: ClassVar[float] = 0.1

    layers: int | None = layers_knob()

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return every tensor of the trained blocks, and the final norm's."""
        return tuple(
            AdapterTensor(name=name, shape=size, initial=Copy(name), rescaled=True)
            for name, size in self._named(shape)
        )

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse quantized weights, which cannot be trained, and experts.

        A step gives an expert few tokens or none, and its float32 copy, gradient and moments would
        take sixteen bytes a weight.
        """
        if any(shape.blocks[layer].experts for layer in last_blocks(shape, self.layers)):
            reason = (
                "--method full does not train the experts of a mixture: they would take eight times "
                "the memory of the model. --method lora trains what all tokens share."
            )
            return [reason]
        if quantization == "none":
            return []
        reason = (
            f"--method full trains the weights themselves, which {quantization} does not keep: "
            "take --quantization none, or --method lora."
        )
        return [reason]

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection by the trained copy, if there is one."""
        ops, name = block.ops, block.module(linear)
        weight = own.tensors.get(f"{name}.weight")
        if weight is None:
            return ops.linear(linear.role, x)
        y = ops.trained_linear(x, weight)
        return ops.add_bias(y, own.tensors[f"{name}.bias"]) if linear.bias else y

    def norm(self, block: Block[A], own: Adapted[A], role: str, x: A) -> A:
        """Return x normalised by the trained copy, if there is one."""
        return trained_norm(block, own, role, x)

    def mix(self, block: Block[A], own: Adapted[A], inputs: Sequence[A]) -> A:
        """Return what the mixer makes with the trained copies of its tensors, if there are any."""
        prefix = "" if block.layer is None else block.shape.block(block.layer)
        copies = {
            tensor.role: copy
            for tensor in block.recurrent.tensors
            if (copy := own.tensors.get(f"{prefix}{tensor.name}")) is not None
        }
        return block.ops.mix(block.recurrent, inputs, copies)

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Put the copies in the place of the weights."""
        from edgetune.methods.merging import Changes, Replaced

        turned = {
            f"{shape.block(layer)}{linear.module}.weight"
            for layer in range(shape.layers)
            for linear in shape.blocks[layer].linears
            if linear.transposed
        }
        own = {name: x.T if name in turned else x for name, x in tensors.items()}
        return Changes(changes={name: Replaced(values) for name, values in own.items()})

    def _named(self, shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
        for layer in last_blocks(shape, self.layers):
            linears, prefix = shape.blocks[layer].linears, shape.block(layer)
            flipped = {f"{prefix}{x.module}.weight" for x in linears if x.transposed}
            frozen = _frozen(shape, layer)
            for tensor in shape.block_tensors(layer):
                if tensor.name in frozen:
                    continue
                yield tensor.name, tensor.shape[::-1] if tensor.name in flipped else tensor.shape
        final = shape.final_norm
        for part in final.parts:
            yield f"{final.module}.{part}", (final.size,)


def _frozen(shape: ModelShape, layer: int) -> frozenset[str]:
    """Return the names of what stays as it is: router, experts, single numbers."""
    block, prefix = shape.blocks[layer], shape.block(layer)
    kept = {"sinks", "scalar", *get_args(XieluRole), *get_args(AltUpRole)}
    small = {f"{prefix}{tensor.name}" for tensor in block.mixer_tensors if tensor.role in kept}
    routing = {f"{prefix}{tensor.name}" for tensor in block.routing_tensors}
    modules = {linear.module for linear in block.expert_linears}
    parts = {f"{prefix}{module}.{part}" for module in modules for part in ("weight", "bias")}
    return frozenset(parts | small | routing)
