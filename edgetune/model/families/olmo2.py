"""OLMo: 1 has layer norms without weights; 2 and 3 norms on the outputs of both halves only.

2 and 3 also normalise all queries, and all keys, at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    alternating,
    decoder,
    gated_mlp,
    head_norms,
    layer_types,
    output_norms,
    pre_norms,
    read_rotary,
    read_sizes,
    read_window,
    rms_norm,
    rotary_of_type,
    same_attention,
    split_attention,
)
from edgetune.shape import Attention, ModelShape, NormKind

_THETA: Final = 500_000.0
"""The base frequency of an OLMo 3 model whose config does not say."""


def olmo(fields: Fields) -> ModelShape:
    """Return the shape of an OLMo 1 model: Llama with layer norms that have no weights."""
    fields.refuse("clip_qkv", "clipped queries, keys and values are not supported")
    sizes = read_sizes(fields)
    bias = fields.flag("attention_bias", False)
    shape = decoder(
        fields,
        sizes,
        family="olmo",
        linears=split_attention(sizes, bias=bias, output_bias=bias) + gated_mlp(sizes),
        norms=[replace(norm, plain=True) for norm in pre_norms(sizes)],
        attention=same_attention(sizes, read_rotary(fields, sizes)),
        norm=NormKind(kind="layer", eps=1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
    return replace(shape, final_norm=replace(shape.final_norm, bias=False, plain=True))


def olmo2(fields: Fields) -> ModelShape:
    """Return the shape of an OLMo 2 model."""
    sizes = read_sizes(fields)
    return _shape(fields, sizes, "olmo2", same_attention(sizes, read_rotary(fields, sizes)))


def olmo3(fields: Fields) -> ModelShape:
    """Return the shape of an OLMo 3 model: three layers with a window to one that sees all.

    Only the latter's rotation is scaled; as in transformers, ``rope_theta`` is theirs alone.
    """
    sizes = read_sizes(fields)
    window = read_window(fields, 4096)
    theta = fields.positive("rope_theta", _THETA)
    full = Attention(
        scale=sizes.head_dim**-0.5,
        rotary=rotary_of_type(fields, sizes, "full_attention", theta),
    )
    rotary = rotary_of_type(fields, sizes, "sliding_attention", _THETA)
    sliding = replace(full, rotary=rotary, window=window)
    types = layer_types(fields, sizes, alternating(sizes, 4))
    attention = [sliding if name == "sliding_attention" else full for name in types]
    return _shape(fields, sizes, "olmo3", attention)


def _shape(fields: Fields, sizes: Sizes, family: str, attention: Sequence[Attention]) -> ModelShape:
    bias = fields.flag("attention_bias", False)
    widths = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    return decoder(
        fields,
        sizes,
        family=family,
        linears=split_attention(sizes, bias=bias, output_bias=bias) + gated_mlp(sizes),
        norms=output_norms(sizes) + head_norms(*widths),
        attention=attention,
        norm=rms_norm(fields, 1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
