"""gpt-oss: attention with sinks, every second layer with a window; experts with biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    alternating,
    decoder,
    gated_mlp,
    layer_types,
    pre_norms,
    read_rotary,
    read_sizes,
    read_window,
    rms_norm,
    split_attention,
)
from edgetune.model.families.mixtures import checked_experts, expert_count, with_experts
from edgetune.shape import Attention, Clamp, Experts, Fused, ModelShape

_YARN: Final[Mapping[str, object]] = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""The rotation of a model whose config does not say."""


def gpt_oss(fields: Fields) -> ModelShape:
    """Return the shape of a gpt-oss model."""
    table = fields.table("rope_scaling") or fields.table("rope_parameters") or dict(_YARN)
    fields = fields.with_values(rope_scaling=None, rope_parameters=table)
    if fields.raw("torch_dtype") is None:
        # as published, a config does not say what its files have beside MX FP4
        fields = fields.with_defaults(dtype="bfloat16")
    sizes = read_sizes(fields, kv_heads=8, head_dim=64, context=131_072)
    full = Attention(
        scale=sizes.head_dim**-0.5,
        rotary=read_rotary(fields, sizes, theta=150_000.0),
        sinks="self_attn.sinks",
    )
    window = read_window(fields, 128)
    sliding, bias = replace(full, window=window), fields.flag("attention_bias", True)
    types = layer_types(fields, sizes, alternating(sizes, 2))
    clamp = Clamp(
        limit=fields.positive("swiglu_limit", 7.0), alpha=fields.positive("swiglu_alpha", 1.702)
    )
    experts = checked_experts(
        fields,
        Experts(
            number=expert_count(fields, 128),
            chosen=fields.size("num_experts_per_tok", 4),
            hidden=sizes.hidden,
            size=sizes.ffn,
            router="mlp.router",
            projections=(
                ("gate_up", "mlp.experts.{}.gate_up_proj"),
                ("down", "mlp.experts.{}.down_proj"),
            ),
            normalised=True,
            biased=True,
            transposed=True,
            clamp=clamp,
            fused=(
                Fused(name="mlp.experts.gate_up_proj", roles=("gate_up",)),
                Fused(name="mlp.experts.gate_up_proj_bias", roles=("gate_up",), part="bias"),
                Fused(name="mlp.experts.down_proj", roles=("down",)),
                Fused(name="mlp.experts.down_proj_bias", roles=("down",), part="bias"),
            ),
        ),
    )
    shape = decoder(
        fields,
        sizes,
        family="gpt_oss",
        linears=split_attention(sizes, bias=bias, output_bias=bias) + gated_mlp(sizes),
        norms=pre_norms(sizes),
        attention=[sliding if name == "sliding_attention" else full for name in types],
        norm=rms_norm(fields, 1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
    return with_experts(shape, lambda _: experts)
