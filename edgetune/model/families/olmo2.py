"""OLMo 2: norms on the outputs of both halves only, and on all queries and keys at once."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    decoder,
    gated_mlp,
    head_norms,
    read_rotary,
    read_sizes,
    rms_norm,
    same_attention,
    split_attention,
)
from edgetune.shape import ModelShape, Norm


def olmo2(fields: Fields) -> ModelShape:
    """Return the shape of an OLMo 2 model."""
    sizes = read_sizes(fields)
    bias = fields.flag("attention_bias", False)
    outputs = (
        Norm(role="attention_output", module="post_attention_layernorm", size=sizes.hidden),
        Norm(role="mlp_output", module="post_feedforward_layernorm", size=sizes.hidden),
    )
    widths = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    return decoder(
        fields,
        sizes,
        family="olmo2",
        linears=split_attention(sizes, bias=bias, output_bias=bias) + gated_mlp(sizes),
        norms=outputs + head_norms(*widths),
        attention=same_attention(sizes, read_rotary(fields, sizes)),
        norm=rms_norm(fields, 1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
