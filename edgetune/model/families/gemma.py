"""Gemma 1, 2 and 3: norm weights around zero, scaled embeddings, tanh-approximated GELU.

Gemma 2 adds norms on the outputs of both halves, soft caps and alternating windows; Gemma 3 has
norms on queries and keys instead of caps, and another rotary base in its windowed layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    alternating,
    decoder,
    gated_mlp,
    head_norms,
    layer_types,
    pre_norms,
    read_rotary,
    read_sizes,
    read_window,
    rms_norm,
    rotary_of_type,
    same_attention,
    sandwich_norms,
    split_attention,
)
from edgetune.shape import Attention, ModelShape, Norm, Rotary

_BOTH_WAYS = "attention that looks ahead cannot be trained as a causal language model"


def gemma(fields: Fields) -> ModelShape:
    """Return the shape of a first-generation Gemma model."""
    sizes = read_sizes(fields, kv_heads=16, head_dim=256, context=8192)
    attention = same_attention(sizes, read_rotary(fields, sizes))
    # "gelu" in Gemma's first configs always meant the tanh approximation.
    exact = fields.raw("hidden_act") == "gelu"
    fields = fields.with_values(hidden_act="gelu_pytorch_tanh") if exact else fields
    return _shape(
        fields, sizes, pre_norms(sizes), attention, family="gemma", activation="hidden_act"
    )


def gemma2(fields: Fields) -> ModelShape:
    """Return the shape of a Gemma 2 model."""
    sizes = read_sizes(fields, kv_heads=4, head_dim=256, context=8192)
    full = Attention(
        scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        softcap=_cap(fields, "attn_logit_softcapping", 50.0),
        rotary=read_rotary(fields, sizes),
    )
    sliding = replace(full, window=read_window(fields, 4096))
    attention = _alternate(fields, sizes, full, sliding, every=2)
    shape = _shape(
        fields,
        sizes,
        sandwich_norms(sizes),
        attention,
        family="gemma2",
        activation="hidden_activation",
    )
    return replace(shape, logit_softcap=_cap(fields, "final_logit_softcapping", 30.0))


def gemma3_text(fields: Fields) -> ModelShape:
    """Return the shape of a Gemma 3 language model.

    The configs of the larger ones leave out whatever equals transformers' defaults, so that
    even the number of heads has a default here.
    """
    fields = fields.with_defaults(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        vocab_size=262_208,
    )
    sizes = read_sizes(fields, kv_heads=4, head_dim=256, context=131_072)
    scale = fields.positive("query_pre_attn_scalar", 256.0) ** -0.5
    full = Attention(scale=scale, rotary=_local_or_global(fields, sizes, "full_attention"))
    sliding = Attention(
        scale=scale,
        rotary=_local_or_global(fields, sizes, "sliding_attention"),
        window=read_window(fields, 4096),
    )
    every = fields.size("sliding_window_pattern", 6)
    attention = _alternate(fields, sizes, full, sliding, every=every)
    fields.refuse("attn_logit_softcapping", "no Gemma 3 model caps its attention scores")
    norms = sandwich_norms(sizes) + head_norms(sizes.head_dim, sizes.head_dim)
    shape = _shape(
        fields, sizes, norms, attention, family="gemma3_text", activation="hidden_activation"
    )
    return replace(shape, logit_softcap=fields.optional_number("final_logit_softcapping"))


def _shape(
    fields: Fields,
    sizes: Sizes,
    norms: tuple[Norm, ...],
    attention: Sequence[Attention],
    *,
    family: str,
    activation: str,
) -> ModelShape:
    fields.refuse("use_bidirectional_attention", _BOTH_WAYS)
    bias = fields.flag("attention_bias", False)
    return decoder(
        fields,
        sizes,
        family=family,
        linears=split_attention(sizes, bias=bias, output_bias=bias) + gated_mlp(sizes),
        norms=norms,
        attention=attention,
        norm=rms_norm(fields, offset=1.0),
        activation=fields.activation(activation, "gelu_pytorch_tanh"),
        tied=fields.flag("tie_word_embeddings", True),
        embedding_scale=sizes.hidden**0.5,
    )


def _alternate(
    fields: Fields, sizes: Sizes, full: Attention, sliding: Attention, *, every: int
) -> list[Attention]:
    types = layer_types(fields, sizes, alternating(sizes, every))
    return [sliding if name == "sliding_attention" else full for name in types]


def _cap(fields: Fields, name: str, default: float) -> float | None:
    return fields.optional_number(name) if fields.has(name) else default


def _local_or_global(fields: Fields, sizes: Sizes, layer_type: str) -> Rotary:
    local = layer_type == "sliding_attention"
    theta_name, theta = ("rope_local_base_freq", 1e4) if local else ("rope_theta", 1e6)
    return rotary_of_type(fields, sizes, layer_type, fields.positive(theta_name, theta))
