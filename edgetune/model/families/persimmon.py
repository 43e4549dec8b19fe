"""Persimmon: fused projections, layer norms of every head's queries and keys, squared ReLUs."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    blocks,
    fused_attention,
    plain_mlp,
    pre_norms,
    read_rotary,
    read_sizes,
    same_attention,
)
from edgetune.shape import ModelShape, Norm, NormKind


def persimmon(fields: Fields) -> ModelShape:
    """Return the shape of a Persimmon model."""
    # whatever the config says of heads beside their number
    sizes = read_sizes(fields.with_values(head_dim=None, num_key_value_heads=None), context=16_384)
    size, fused = sizes.head_dim, "self_attn.query_key_value"
    heads = tuple(
        Norm(role=role, module=f"self_attn.{role}_layernorm", size=size, bias=True)
        for role in ("q", "k")
    )
    rotary = read_rotary(fields, sizes, partial=0.5)
    return ModelShape(
        family="persimmon",
        hidden_size=sizes.hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", False),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_eps", 1e-5)),
        blocks=blocks(
            sizes,
            linears=fused_attention(sizes, fused, "self_attn.dense", bias=True)
            + plain_mlp(sizes, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
            norms=pre_norms(sizes, bias=True)
            + (heads if fields.flag("qk_layernorm", True) else ()),
            attention=same_attention(sizes, rotary),
            activation=fields.activation("hidden_act", "relu2"),
            interleaved_qkv=True,
        ),
        final_norm=Norm(role="final", module="model.final_layernorm", size=sizes.hidden, bias=True),
        embedding="model.embed_tokens",
        head="lm_head",
        block_prefix="model.layers.{}.",
    )
