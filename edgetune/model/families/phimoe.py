"""PhiMoE (Phi-3.5-MoE): layer norms, biases, and experts that SparseMixer weighs."""

from __future__ import annotations

from dataclasses import replace

from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    gated_mlp,
    pre_norms,
    read_sizes,
    same_attention,
    split_attention,
)
from edgetune.model.families.mixtures import (
    BLOCK_SPARSE,
    checked_experts,
    expert_count,
    with_experts,
)
from edgetune.model.rotary import rope_table, rotary
from edgetune.shape import Experts, ModelShape, NormKind, Rotary


def phimoe(fields: Fields) -> ModelShape:
    """Return the shape of a PhiMoE model; the draws of its training are no part of it."""
    sizes = read_sizes(fields.with_defaults(intermediate_size=6400), kv_heads=8, context=4096 * 32)
    bias, window = fields.flag("attention_bias", False), fields.optional_size("sliding_window")
    head_bias = fields.flag("lm_head_bias", False)
    whole = decoder(
        fields,
        sizes,
        family="phimoe",
        linears=split_attention(sizes, bias=bias, output_bias=bias) + gated_mlp(sizes),
        norms=pre_norms(sizes, bias=True),
        attention=same_attention(sizes, _rotary(fields, sizes), window),
        norm=NormKind(kind="layer", eps=fields.positive("rms_norm_eps", 1e-5)),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
    chosen = fields.size("num_experts_per_tok", 2)
    if chosen != 2:
        fields.problems.append(f"num_experts_per_tok is {chosen}: SparseMixer chooses 2")
    experts = Experts(
        number=expert_count(fields, 16),
        chosen=2,
        hidden=sizes.hidden,
        size=sizes.ffn,
        router="block_sparse_moe.gate",
        projections=BLOCK_SPARSE,
        normalised=False,
        score="sparsemixer",
        jitter=_jitter(fields),
    )
    checked = checked_experts(fields, experts)
    return replace(with_experts(whole, lambda _: checked), head_bias=head_bias)


def _jitter(fields: Fields) -> float:
    """Return how near to the best score others count: at zero none does."""
    written = fields.raw("router_jitter_noise")
    return 0.0 if written == 0 else fields.positive("router_jitter_noise", 0.01)


def _rotary(fields: Fields, sizes: Sizes) -> Rotary:
    """Return the rotation, whose factor is written out where it is scaled."""
    table = rope_table(fields)
    rule = rotary(
        fields,
        table,
        head_dim=sizes.head_dim,
        theta=fields.positive("rope_theta", 1e6),
        context=sizes.context,
        original_context=fields.optional_size("original_max_position_embeddings"),
    )
    if rule.scaling == "none":
        return rule
    inner = Fields(table)
    factor, long = inner.positive("short_mscale", 1.0), inner.positive("long_mscale", 1.0)
    if rule.scaling != "longrope" or factor != long:
        fields.problems.append(
            f"rotary settings: rope_type {short(rule.scaling)}, short_mscale {factor} and "
            f"long_mscale {long}: only longrope with one factor for all lengths is supported"
        )
    return replace(rule, attention_factor=factor)
