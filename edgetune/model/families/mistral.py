"""Mistral's models: Llama with a window, or with queries that grow with the position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    layer_types,
    read_rotary,
    read_sizes,
    read_window,
    same_attention,
)
from edgetune.model.families.llama import like_llama
from edgetune.shape import Attention, ModelShape

_YARN: Final[Mapping[str, object]] = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0,
    "original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
"""The rotation of a Ministral 3 model whose config does not say."""


def mistral(fields: Fields) -> ModelShape:
    """Return the shape of a Mistral model: Llama with the same window in every layer."""
    sizes = read_sizes(fields, kv_heads=8, context=4096 * 32)
    window = read_window(fields, 4096)
    attention = same_attention(sizes, read_rotary(fields, sizes), window)
    return _shape(fields, sizes, "mistral", attention)


def ministral(fields: Fields) -> ModelShape:
    """Return the shape of a Ministral model of 2024: some layers have a window."""
    sizes = read_sizes(fields, kv_heads=8, context=4096 * 32)
    window = read_window(fields, 4096)
    full = Attention(scale=sizes.head_dim**-0.5, rotary=read_rotary(fields, sizes))
    default = "full_attention" if window is None else "sliding_attention"
    types = layer_types(fields, sizes, [default] * sizes.layers)
    sliding = replace(full, window=window)
    return _shape(
        fields, sizes, "ministral", [sliding if x == "sliding_attention" else full for x in types]
    )


def ministral3(fields: Fields) -> ModelShape:
    """Return the shape of a Ministral 3 model.

    Its queries are multiplied by ``1 + beta log(1 + position // original context)``.
    """
    given = fields.table("rope_scaling") or fields.table("rope_parameters")
    table = given or dict(_YARN)
    fields = fields.with_values(rope_scaling=None, rope_parameters=table)
    sizes = read_sizes(fields, kv_heads=8, head_dim=128, context=262_144)
    rotary = read_rotary(fields, sizes)
    inner = Fields(table)
    beta = inner.number("llama_4_scaling_beta", 0.0)
    grown = inner.size("original_max_position_embeddings", sizes.context)
    fields.problems += [f"rotary settings: {problem}" for problem in inner.problems]
    query = replace(rotary, growth=beta, original_context=grown) if beta else None
    layer = Attention(
        scale=sizes.head_dim**-0.5,
        window=fields.optional_size("sliding_window"),
        rotary=rotary,
        query_rotary=query,
    )
    return _shape(fields, sizes, "ministral3", (layer,) * sizes.layers, eps=1e-5)


def _shape(
    fields: Fields, sizes: Sizes, family: str, attention: Sequence[Attention], eps: float = 1e-6
) -> ModelShape:
    # These models have no biases, whatever other fields say.
    plain = fields.with_values(attention_bias=False, mlp_bias=False)
    return like_llama(plain, sizes, family, attention, eps=eps)
