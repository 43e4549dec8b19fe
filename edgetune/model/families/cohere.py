"""Cohere's Command models: both halves of a block read one norm, channels rotate in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    alternating,
    decoder,
    gated_mlp,
    interleaved,
    layer_types,
    read_rotary,
    read_sizes,
    read_window,
    same_attention,
    split_attention,
)
from edgetune.shape import Attention, ModelShape, Norm, NormKind


def cohere(fields: Fields) -> ModelShape:
    """Return the shape of a Command R model."""
    sizes = read_sizes(fields, context=8192)
    fields.refuse("use_qk_norm", "a separate norm for each head is not supported")
    rotary = interleaved(read_rotary(fields, sizes, theta=500_000.0))
    return _shape(fields, sizes, "cohere", same_attention(sizes, rotary))


def cohere2(fields: Fields) -> ModelShape:
    """Return the shape of a Command R7B or A model: only layers with a window rotate."""
    sizes = read_sizes(fields, context=8192)
    full = Attention(scale=sizes.head_dim**-0.5)
    window = read_window(fields, 4096)
    rotary = interleaved(read_rotary(fields, sizes)) if window is not None else None
    sliding = replace(full, window=window, rotary=rotary)
    every = fields.size("sliding_window_pattern", 4)
    types = layer_types(fields, sizes, alternating(sizes, every))
    attention = [sliding if name == "sliding_attention" else full for name in types]
    return _shape(fields, sizes, "cohere2", attention)


def _shape(fields: Fields, sizes: Sizes, family: str, attention: Sequence[Attention]) -> ModelShape:
    bias = fields.flag("attention_bias", False)
    shape = decoder(
        fields,
        sizes,
        family=family,
        linears=split_attention(sizes, bias=bias, output_bias=bias) + gated_mlp(sizes),
        norms=(Norm(role="attention_input", module="input_layernorm", size=sizes.hidden),),
        attention=attention,
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_eps", 1e-5)),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", True),
        logit_scale=fields.number("logit_scale", 0.0625),
        parallel=True,
    )
    return replace(shape, final_norm=replace(shape.final_norm, bias=False))
