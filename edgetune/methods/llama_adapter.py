"""LLaMA-Adapter: prompts beside the attention of the top layers, behind a gate that starts at 0.

Zhang et al. 2023 (2303.16199), equations 4 to 8: the prompts have a softmax of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ZEROS, Normal
from edgetune.methods.knobs import layers_knob
from edgetune.methods.targets import last_blocks
from edgetune.network.ops import A, Attended
from edgetune.settings.spec import Interval, knob
from edgetune.shape import ModelShape

if TYPE_CHECKING:
    from edgetune.methods.adapted import Adapted
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaAdapter(Method):
    """``adaption_length`` prompt rows (length, hidden) and a gate in each adapted layer."""

    kind: ClassVar[str] = "llama-adapter"
    attends: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    format: ClassVar[str] = "edgetune.adapters.llama_adapter:LlamaAdapterFormat"
    peft_type: ClassVar[str] = "ADAPTION_PROMPT"
    rate_factor: ClassVar[float] = 10.0
    reads_summands: ClassVar[bool] = False

    adaption_length: int = knob(
        10, "LLaMA-Adapter's prompt rows per layer.", interval=Interval(low=1)
    )
    gate: Literal["head", "layer"] = knob(
        "head", "LLaMA-Adapter's gates: one per head, or one per layer as in PEFT."
    )
    layers: int | None = layers_knob()

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return ``length * hidden`` parameters and the gates of every adapted layer."""
        return tuple(
            tensor
            for layer in last_blocks(shape, self.layers)
            if shape.blocks[layer].attention is not None
            for tensor in self._layer(shape, layer)
        )

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse blocks of which none has attention, and those that make no keys and values."""
        reading = [x for x in last_blocks(shape, self.layers) if shape.source(x) is not None]
        if reading:
            reason = (
                f"LLaMA-Adapter's prompts become keys and values, which the last {len(reading)} "
                f"blocks of this {shape.family} model take from others. Use --method lora."
            )
            return [reason]
        attending = [n for n, block in enumerate(shape.blocks) if block.attention is not None]
        if any(layer in last_blocks(shape, self.layers) for layer in attending):
            return []
        has = f"--layers {shape.layers - attending[-1]} has one" if attending else "no block has it"
        reason = (
            f"LLaMA-Adapter's prompts stand beside attention, and the blocks of --layers "
            f"{self.layers} in this {shape.family} model have none: {has}."
        )
        return [reason]

    def attend(self, block: Block[A], own: Adapted[A], attended: Attended[A]) -> A:
        """Return the attention with that over the prompt, gated, if the layer has one."""
        ops, name = block.ops, attention_name(block.shape, block.layer or 0)
        out, prompt = ops.attend(attended), own.tensors.get(f"{name}.adaption_prompt")
        if prompt is None:
            return out
        k, v = block.keys_values(ops.cast(prompt))
        added = ops.attend_all(attended.q, k, v, attended.rule.scale)
        return ops.add(out, ops.times_heads(added, own.tensors[f"{name}.adaption_gate"]))

    def _layer(self, shape: ModelShape, layer: int) -> Iterator[AdapterTensor]:
        name = attention_name(shape, layer)
        size = (1, self.adaption_length, shape.hidden_size)
        yield AdapterTensor(name=f"{name}.adaption_prompt", shape=size, initial=Normal(1.0))
        gates = (shape.blocks[layer].heads,) if self.gate == "head" else (1,)
        yield AdapterTensor(name=f"{name}.adaption_gate", shape=gates, initial=ZEROS)


def attention_name(shape: ModelShape, layer: int) -> str:
    """Return the module path of a block's attention."""
    output = shape.blocks[layer].linear_by_role["o"]
    return f"{shape.block(layer)}{output.module.rsplit('.', 1)[0]}"
