"""Phi-3, Phi-3.5 and Phi-4: Llama with fused projections, LongRoPE and partial rotation."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    pre_norms,
    read_sizes,
    rms_norm,
    same_attention,
)
from edgetune.model.rotary import rope_table, rotary
from edgetune.shape import Linear, ModelShape, Rotary


def phi3(fields: Fields) -> ModelShape:
    """Return the shape of a Phi-3 model."""
    sizes = read_sizes(fields, context=4096)
    window = fields.optional_size("sliding_window")
    return decoder(
        fields,
        sizes,
        family="phi3",
        linears=_linears(sizes),
        norms=pre_norms(sizes),
        attention=same_attention(sizes, _rotary(fields, sizes), window),
        norm=rms_norm(fields, 1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def _linears(sizes: Sizes) -> tuple[Linear, ...]:
    hidden, ffn, query = sizes.hidden, sizes.ffn, sizes.heads * sizes.head_dim
    fused = query + 2 * sizes.kv_heads * sizes.head_dim
    return (
        Linear(role="qkv", module="self_attn.qkv_proj", inputs=hidden, outputs=fused),
        Linear(role="o", module="self_attn.o_proj", inputs=query, outputs=hidden),
        Linear(role="gate_up", module="mlp.gate_up_proj", inputs=hidden, outputs=2 * ffn),
        Linear(role="down", module="mlp.down_proj", inputs=ffn, outputs=hidden),
    )


def _rotary(fields: Fields, sizes: Sizes) -> Rotary:
    table = rope_table(fields)
    # Phi-3's first configs call LongRoPE "su", some of them "yarn".
    if (table.get("rope_type") or table.get("type")) in ("su", "yarn"):
        table["rope_type"] = "longrope"
    return rotary(
        fields,
        table,
        head_dim=sizes.head_dim,
        theta=fields.positive("rope_theta", 10_000.0),
        context=sizes.context,
        original_context=fields.size("original_max_position_embeddings", 4096),
        partial=1.0,
    )
