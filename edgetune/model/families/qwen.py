"""Qwen2 (biases on queries, keys and values) and Qwen3 (norms on queries and keys instead)."""

from __future__ import annotations

from dataclasses import replace

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    gated_mlp,
    head_norms,
    layer_types,
    pre_norms,
    read_rotary,
    read_sizes,
    read_window,
    rms_norm,
    split_attention,
)
from edgetune.shape import Attention, Linear, ModelShape, Norm


def qwen2(fields: Fields) -> ModelShape:
    """Return the shape of a Qwen2 or Qwen2.5 model."""
    sizes = read_sizes(fields, kv_heads=32, context=32768)
    linears = split_attention(sizes, bias=True, output_bias=False)
    return _shape(fields, sizes, "qwen2", linears, pre_norms(sizes))


def qwen3(fields: Fields) -> ModelShape:
    """Return the shape of a dense Qwen3 model."""
    sizes = read_sizes(fields, kv_heads=32, head_dim=128, context=32768)
    bias = fields.flag("attention_bias", False)
    linears = split_attention(sizes, bias=bias, output_bias=bias)
    norms = pre_norms(sizes) + head_norms(sizes.head_dim, sizes.head_dim)
    return _shape(fields, sizes, "qwen3", linears, norms)


def _shape(
    fields: Fields,
    sizes: Sizes,
    family: str,
    linears: tuple[Linear, ...],
    norms: tuple[Norm, ...],
) -> ModelShape:
    return decoder(
        fields,
        sizes,
        family=family,
        linears=linears + gated_mlp(sizes),
        norms=norms,
        attention=_attention(fields, sizes),
        norm=rms_norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def _attention(fields: Fields, sizes: Sizes) -> list[Attention]:
    full = Attention(scale=sizes.head_dim**-0.5, rotary=read_rotary(fields, sizes))
    window = read_window(fields, 4096)
    if not fields.flag("use_sliding_window", False):
        return [full] * sizes.layers
    sliding = replace(full, window=window)
    first = fields.count("max_window_layers", 28)
    default = [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(sizes.layers)
    ]
    types = layer_types(fields, sizes, default)
    return [sliding if name == "sliding_attention" else full for name in types]
