"""Llama, and SmolLM3, in which every fourth layer does not rotate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    gated_mlp,
    layer_types,
    pre_norms,
    read_rotary,
    read_sizes,
    rms_norm,
    same_attention,
    split_attention,
)
from edgetune.shape import Attention, ModelShape


def llama(fields: Fields) -> ModelShape:
    """Return the shape of a Llama model (SmolLM2 and TinyLlama are of this type too)."""
    sizes = read_sizes(fields)
    return like_llama(fields, sizes, "llama", same_attention(sizes, read_rotary(fields, sizes)))


def smollm3(fields: Fields) -> ModelShape:
    """Return the shape of a SmolLM3 model: Llama with every fourth layer left unrotated."""
    sizes = read_sizes(fields, kv_heads=4, context=32768)
    rotated = _rotated_layers(fields, sizes)
    window = fields.optional_size("sliding_window")
    windows = fields.flag("use_sliding_window", False)  # which types that are written overrule
    types = ["sliding_attention" if windows and not x else "full_attention" for x in rotated]
    full = Attention(
        scale=sizes.head_dim**-0.5, rotary=read_rotary(fields, sizes, theta=2_000_000.0)
    )
    attention = [
        replace(
            full,
            rotary=full.rotary if turned else None,
            window=window if name == "sliding_attention" else None,
        )
        for turned, name in zip(rotated, layer_types(fields, sizes, types), strict=True)
    ]
    return like_llama(fields, sizes, "smollm3", attention, tied=True)


def _rotated_layers(fields: Fields, sizes: Sizes) -> list[bool]:
    given = fields.items("no_rope_layers", int, sizes.layers)
    interval = fields.size("no_rope_layer_interval", 4)
    if given is not None:
        return [bool(value) for value in given]
    return [(layer + 1) % interval != 0 for layer in range(sizes.layers)]


def like_llama(
    fields: Fields,
    sizes: Sizes,
    family: str,
    attention: Sequence[Attention],
    *,
    tied: bool = False,
    eps: float = 1e-6,
) -> ModelShape:
    """Return the shape of a model with Llama's projections and norms."""
    bias = fields.flag("attention_bias", False)
    return decoder(
        fields,
        sizes,
        family=family,
        linears=split_attention(sizes, bias=bias, output_bias=bias)
        + gated_mlp(sizes, bias=fields.flag("mlp_bias", False)),
        norms=pre_norms(sizes),
        attention=attention,
        norm=rms_norm(fields, eps),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", tied),
    )
