"""Granite: Llama with four multipliers; the dense ones of Granite 4 fuse gate and up."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    decoder,
    fused_mlp,
    pre_norms,
    read_rotary,
    read_sizes,
    rms_norm,
    split_attention,
)
from edgetune.model.families.llama import like_llama
from edgetune.model.families.mixtures import checked_experts, expert_count, with_experts
from edgetune.shape import Attention, Experts, Fused, ModelShape

_ATTENTION: Final = frozenset({"attention", "full_attention"})


def granite(fields: Fields) -> ModelShape:
    """Return the shape of a Granite model of the first three generations."""
    sizes = read_sizes(fields)
    layer = Attention(scale=_scale(fields), rotary=read_rotary(fields, sizes))
    return _multiplied(fields, like_llama(fields, sizes, "granite", (layer,) * sizes.layers))


def granitemoe(fields: Fields) -> ModelShape:
    """Return the shape of a mixture of Granite 3: files have all experts in two tensors."""
    sizes = read_sizes(fields)
    layer = Attention(scale=_scale(fields), rotary=read_rotary(fields, sizes))
    plain = fields.with_values(mlp_bias=False)
    shape = like_llama(plain, sizes, "granitemoe", (layer,) * sizes.layers)
    experts = checked_experts(
        fields,
        Experts(
            number=expert_count(fields, 8),
            chosen=fields.size("num_experts_per_tok", 2),
            hidden=sizes.hidden,
            size=sizes.ffn,
            router="block_sparse_moe.router.layer",
            projections=(
                ("gate", "block_sparse_moe.experts.{}.gate_proj"),
                ("up", "block_sparse_moe.experts.{}.up_proj"),
                ("down", "block_sparse_moe.experts.{}.down_proj"),
            ),
            normalised=True,
            fused=(
                Fused(name="block_sparse_moe.input_linear.weight", roles=("gate", "up")),
                Fused(name="block_sparse_moe.output_linear.weight", roles=("down",)),
            ),
        ),
    )
    return _multiplied(fields, with_experts(shape, lambda _: experts))


def granitemoehybrid(fields: Fields) -> ModelShape:
    """Return the shape of a Granite 4 model that is neither a mixture nor a hybrid."""
    width = fields.size("shared_intermediate_size", 1024)
    sizes = replace(read_sizes(fields.with_values(intermediate_size=width)), ffn=width)
    if fields.raw("num_local_experts") != 0:
        fields.problems.append("it is a mixture of experts: num_local_experts is not 0")
    types = fields.items("layer_types", str, sizes.layers)
    if types is None or not _ATTENTION.issuperset(map(str, types)):
        fields.problems.append("it has state-space layers: not all layer_types are attention")
    rotates = fields.raw("position_embedding_type") == "rope"
    layer = Attention(scale=_scale(fields), rotary=read_rotary(fields, sizes) if rotates else None)
    bias = fields.flag("attention_bias", False)
    shape = decoder(
        fields,
        sizes,
        family="granitemoehybrid",
        linears=split_attention(sizes, bias=bias, output_bias=bias)
        + fused_mlp(sizes, "shared_mlp.input_linear", "shared_mlp.output_linear"),
        norms=pre_norms(sizes),
        attention=(layer,) * sizes.layers,
        norm=rms_norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
    return _multiplied(fields, shape)


def _scale(fields: Fields) -> float:
    return fields.number("attention_multiplier", 1.0)


def _multiplied(fields: Fields, shape: ModelShape) -> ModelShape:
    return replace(
        shape,
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / fields.positive("logits_scaling", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
    )
