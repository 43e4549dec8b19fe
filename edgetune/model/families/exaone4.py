"""EXAONE 4: norms on the outputs of both halves only, and layers that see all do not rotate."""

from __future__ import annotations

from dataclasses import replace

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    alternating,
    decoder,
    gated_mlp,
    head_norms,
    layer_types,
    output_norms,
    read_rotary,
    read_sizes,
    read_window,
    rms_norm,
    split_attention,
)
from edgetune.shape import Attention, ModelShape


def exaone4(fields: Fields) -> ModelShape:
    """Return the shape of an EXAONE 4 model."""
    sizes = read_sizes(fields, kv_heads=32)
    return decoder(
        fields,
        sizes,
        family="exaone4",
        linears=split_attention(sizes, bias=False, output_bias=False) + gated_mlp(sizes),
        norms=output_norms(sizes) + head_norms(sizes.head_dim, sizes.head_dim),
        attention=_attention(fields, sizes),
        norm=rms_norm(fields, 1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def _attention(fields: Fields, sizes: Sizes) -> list[Attention]:
    window = read_window(fields, 4096)
    rotating = Attention(scale=sizes.head_dim**-0.5, rotary=read_rotary(fields, sizes))
    if window is None:
        return [rotating] * sizes.layers
    sliding, full = replace(rotating, window=window), replace(rotating, rotary=None)
    named = fields.raw("layer_types") is not None  # the pattern can be letters then
    every = 4 if named else fields.size("sliding_window_pattern", 4)
    types = layer_types(fields, sizes, alternating(sizes, every))
    return [sliding if name == "sliding_attention" else full for name in types]
