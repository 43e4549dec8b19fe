"""Prefix tuning as PEFT writes it: the keys and values of all layers in one tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final, cast

from edgetune.adapters.base import ANYWHERE, AdapterFormat
from edgetune.adapters.native import TypedFormat
from edgetune.adapters.prompt import read_length, sizes
from edgetune.methods.base import Method
from edgetune.methods.prefix import Prefix
from edgetune.shape import ModelShape

_KNOWN: Final = ANYWHERE | {
    "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
    # how it was trained: PEFT saves what the network gave, too
    "prefix_projection", "encoder_hidden_size", "init_weights",
}  # fmt: skip


class PrefixFormat(AdapterFormat):
    """``prompt_embeddings`` (length, layers * 2 * width): per layer the keys, then the values."""

    prefix: ClassVar[str] = ""

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of a ``PrefixTuningConfig``, or edgetune's where layers differ."""
        if len({(block.keys, block.kv_heads) for block in shape.kinds}) > 1:
            return TypedFormat().config(method, shape)
        width = shape.blocks[0].keys
        return {
            "peft_type": "PREFIX_TUNING",
            "prefix_projection": False,
            "encoder_hidden_size": width,
            **sizes(shape, cast("Prefix", method).length, width, shape.blocks[0].kv_heads),
        }

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> Prefix:
        """Return prefix tuning of the length that the config says, without a network."""
        return Prefix(prefix_length=read_length(config, _KNOWN)).on_disk()
