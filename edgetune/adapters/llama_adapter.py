"""LLaMA-Adapter as PEFT writes it, where PEFT's is the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, cast

from edgetune.adapters.base import ANYWHERE, AdapterFormat, unsupported
from edgetune.adapters.native import TypedFormat
from edgetune.errors import ModelError
from edgetune.methods.base import Method
from edgetune.methods.llama_adapter import LlamaAdapter, attention_name
from edgetune.methods.targets import last_blocks
from edgetune.model.config import Fields
from edgetune.model.weights import listing
from edgetune.shape import ModelShape

_FAMILIES: Final = ("llama", "mistral")
_KNOWN: Final = ANYWHERE | {"adapter_len", "adapter_layers", "target_modules"}
_ALLOWED: Final[Mapping[str, tuple[object, ...]]] = {"task_type": ("CAUSAL_LM",)}


class LlamaAdapterFormat(AdapterFormat):
    """``adaption_prompt`` (1, length, hidden) and ``adaption_gate`` of the last layers.

    PEFT has one gate a layer, and on GPT-2 and projections with biases another computation: what
    it cannot express is written as edgetune's own type.
    """

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of an ``AdaptionPromptConfig``, or edgetune's."""
        adapter = cast("LlamaAdapter", method)
        if adapter.gate != "layer" or not _same_in_peft(shape):
            return TypedFormat().config(method, shape)
        return {
            "peft_type": "ADAPTION_PROMPT",
            "task_type": "CAUSAL_LM",
            "adapter_len": adapter.adaption_length,
            "adapter_layers": len(last_blocks(shape, adapter.layers)),
            "target_modules": attention_name(shape, 0).rsplit(".", 1)[-1],
        }

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> LlamaAdapter:
        """Return the prompts of the last layers, with one gate each."""
        fields = Fields(config)
        length, layers = fields.size("adapter_len"), fields.size("adapter_layers")
        problems = [*fields.problems, *unsupported(config, _KNOWN, _ALLOWED)]
        if not _same_in_peft(shape):
            problems.append(f"PEFT computes it in another way on this {shape.family} model")
        if problems:
            raise ModelError(f"This LLaMA-Adapter cannot be used:\n  - {listing(problems)}")
        return LlamaAdapter(adaption_length=length, layers=layers, gate="layer")


def _same_in_peft(shape: ModelShape) -> bool:
    biased = any(x.bias for x in shape.all_linears if x.role == "o")
    square = all(block.queries == shape.hidden_size for block in shape.kinds)
    return shape.family in _FAMILIES and square and not biased
