"""LLaMA-Adapter: prompts beside the attention of the top layers, behind a gate that starts at 0.

Zhang et al. 2023 (2303.16199), equations 4 to 8: the prompts have a softmax of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgetune.methods.base import AdapterTensor, Footprint, Method
from edgetune.methods.initial import ZEROS, Normal
from edgetune.methods.targets import last_blocks
from edgetune.settings.spec import Interval, knob
from edgetune.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaAdapter(Method):
    """``adaption_length`` prompt rows (length, hidden) and a gate in each adapted layer."""

    kind: ClassVar[str] = "llama-adapter"
    mergeable: ClassVar[bool] = False
    rate_factor: ClassVar[float] = 10.0

    adaption_length: int = knob(
        10, "Prompt rows of a layer of LLaMA-Adapter.", interval=Interval(low=1)
    )
    gate: Literal["head", "layer"] = knob(
        "head", "LLaMA-Adapter's gates: one a head, or one a layer as PEFT has it."
    )
    layers: int | None = knob(
        None,
        "Only so many of the last blocks are adapted (default: all).",
        interval=Interval(low=1),
    )

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return ``length * hidden`` parameters and the gates of every adapted layer."""
        return tuple(
            tensor
            for layer in last_blocks(shape, self.layers)
            for tensor in self._layer(shape, layer)
        )

    def first_layer(self, shape: ModelShape) -> int:
        """Return the first block with a prompt."""
        return last_blocks(shape, self.layers).start

    def footprint(self, shape: ModelShape, layer: int) -> Footprint:
        """Return the length of a block's prompt."""
        return Footprint(prompt=0 if layer < self.first_layer(shape) else self.adaption_length)

    def _layer(self, shape: ModelShape, layer: int) -> Iterator[AdapterTensor]:
        name = attention_name(shape, layer)
        size = (1, self.adaption_length, shape.hidden_size)
        yield AdapterTensor(name=f"{name}.adaption_prompt", shape=size, initial=Normal(1.0))
        gates = (shape.heads,) if self.gate == "head" else (1,)
        yield AdapterTensor(name=f"{name}.adaption_gate", shape=gates, initial=ZEROS)


def attention_name(shape: ModelShape, layer: int) -> str:
    """Return the module path of a block's attention."""
    roles = shape.linear_by_role
    first = roles["qkv"] if "qkv" in roles else roles["q"]
    return f"{shape.block(layer)}{first.module.rsplit('.', 1)[0]}"
