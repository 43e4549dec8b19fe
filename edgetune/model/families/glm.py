"""GLM-4: half of each head rotates in pairs, gate and up are one projection."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    fused_mlp,
    interleaved,
    pre_norms,
    read_rotary,
    read_sizes,
    rms_norm,
    same_attention,
    split_attention,
)
from edgetune.shape import ModelShape, Norm


def glm(fields: Fields) -> ModelShape:
    """Return the shape of a GLM-4 model of 2024."""
    sizes = _sizes(fields)
    return _shape(fields, sizes, "glm", pre_norms(sizes))


def glm4(fields: Fields) -> ModelShape:
    """Return the shape of a GLM-4-0414 model: norms on the outputs of both halves, too."""
    sizes = _sizes(fields)
    outputs = (
        Norm(role="attention_output", module="post_self_attn_layernorm", size=sizes.hidden),
        Norm(role="mlp_output", module="post_mlp_layernorm", size=sizes.hidden),
    )
    return _shape(fields, sizes, "glm4", pre_norms(sizes) + outputs)


def _sizes(fields: Fields) -> Sizes:
    return read_sizes(fields, kv_heads=2, head_dim=128, context=131_072)


def _shape(fields: Fields, sizes: Sizes, family: str, norms: tuple[Norm, ...]) -> ModelShape:
    rotary = interleaved(read_rotary(fields, sizes, partial=0.5))
    bias = fields.flag("attention_bias", True)
    return decoder(
        fields,
        sizes,
        family=family,
        linears=split_attention(sizes, bias=bias, output_bias=False) + fused_mlp(sizes),
        norms=norms,
        attention=same_attention(sizes, rotary),
        norm=rms_norm(fields, 1.5625e-7),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
