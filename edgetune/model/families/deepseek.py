"""Multi-head latent attention: DeepSeek-V2 and V3, what is built like them, and GLM-4.7-Flash.

The first layers have an MLP, the others experts beside an MLP for all tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    gated_mlp,
    pre_norms,
    read_sizes,
    rms_norm,
)
from edgetune.model.families.mixtures import (
    checked_experts,
    checked_groups,
    corrected,
    refuse_other,
    with_experts,
)
from edgetune.model.rotary import rope_table, rotary
from edgetune.shape import Attention, Experts, Latent, Linear, ModelShape, Norm, NormKind, Rotary

_LATENT_NORM = NormKind(kind="rms", eps=1e-6)
"""Norms of latents do not follow the config's epsilon."""


def deepseek_v2(fields: Fields) -> ModelShape:
    """Return the shape of a DeepSeek-V2 model (V2-Lite, Coder-V2-Lite): weights are softmaxes."""
    query_rank = _query_rank(fields, 1536)
    fields = fields.with_defaults(
        n_routed_experts=64, n_shared_experts=2, moe_intermediate_size=1407, **_LATENTS
    )
    fields.refuse("norm_topk_prob", "transformers leaves weights of experts as they are")
    fields.refuse("mlp_bias", "biases of MLPs are not supported")
    method = fields.raw("topk_method") or "greedy"
    if method not in {"greedy", "group_limited_greedy"}:
        fields.problems.append(f"topk_method is {short(method)}: that is not supported")
    refuse_other(fields, "scoring_func", "softmax")
    first = fields.count("first_k_dense_replace", 0)
    parts = _parts(fields, query_rank, context=2048, interleaved=True)
    experts = _experts(fields, parts.sizes, grouped=method == "group_limited_greedy")
    return _shape(fields, "deepseek_v2", parts, experts, range(first, parts.sizes.layers))


def deepseek_v3(fields: Fields) -> ModelShape:
    """Return the shape of a DeepSeek-V3 model (Moonlight): weights are sigmoids."""
    query_rank = _query_rank(fields, 1536)
    fields = fields.with_defaults(
        n_routed_experts=256, n_shared_experts=1, moe_intermediate_size=2048,
        num_experts_per_tok=8, n_group=8, topk_group=4, routed_scaling_factor=2.5,
        norm_topk_prob=True, **_LATENTS,
    )  # fmt: skip
    first = fields.count("first_k_dense_replace", 3)
    parts = _parts(
        fields, query_rank, context=4096, interleaved=fields.flag("rope_interleave", True)
    )
    experts = corrected(fields, _experts(fields, parts.sizes, grouped=True))
    return _shape(fields, "deepseek_v3", parts, experts, range(first, parts.sizes.layers))


def glm4_moe_lite(fields: Fields) -> ModelShape:
    """Return the shape of GLM-4.7-Flash, which is a DeepSeek-V3 with other sizes."""
    query_rank = _query_rank(fields, 768)
    fields = fields.with_defaults(
        n_routed_experts=64, n_shared_experts=1, moe_intermediate_size=1536,
        num_experts_per_tok=4, routed_scaling_factor=1.8, norm_topk_prob=True, rms_norm_eps=1e-5,
        **(_LATENTS | {"v_head_dim": 256, "qk_nope_head_dim": 192}),
    )  # fmt: skip
    if fields.raw("first_k_dense_replace") not in (None, 1):
        fields.problems.append("first_k_dense_replace is not 1: transformers does not read it here")
    parts = _parts(
        fields, query_rank, context=202_752, interleaved=fields.flag("rope_interleave", True)
    )
    experts = corrected(fields, _experts(fields, parts.sizes, grouped=True))
    return _shape(fields, "glm4_moe_lite", parts, experts, _sparse(fields, parts.sizes))


_LATENTS = {
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Parts:
    """Sizes of a model, what is attended to, and the width of the latents of queries, if any."""

    sizes: Sizes
    rule: Attention
    latent: Latent
    query_rank: int | None


def _parts(fields: Fields, query_rank: int | None, *, context: int, interleaved: bool) -> _Parts:
    heads = fields.raw("num_attention_heads")
    if fields.raw("num_key_value_heads") not in (None, heads):
        fields.problems.append("num_key_value_heads is not num_attention_heads: each has its own")
    latent = Latent(
        rank=fields.size("kv_lora_rank"),
        rotated=fields.size("qk_rope_head_dim"),
        value_dim=fields.size("v_head_dim"),
    )
    key_dim = fields.size("qk_nope_head_dim") + latent.rotated
    if latent.value_dim > key_dim:
        fields.problems.append(
            f"v_head_dim is {latent.value_dim}, more than the {key_dim} channels of a key: "
            "that is not supported"
        )
    sizes = read_sizes(
        fields.with_values(head_dim=key_dim, num_key_value_heads=heads), context=context
    )
    rotation = replace(_rotary(fields, latent, sizes), interleaved=interleaved)
    scale = key_dim**-0.5 * _magnitude(fields, rotation.factor) ** 2
    rule = Attention(scale=scale, rotary=rotation, latent=latent)
    return _Parts(sizes, rule, latent, query_rank)


def _query_rank(fields: Fields, default: int) -> int | None:
    """Return the width of the latents of queries: null, not its absence, says that there are none."""
    if fields.has("q_lora_rank") and fields.raw("q_lora_rank") is None:
        return None
    return fields.size("q_lora_rank", default)


def _rotary(fields: Fields, latent: Latent, sizes: Sizes) -> Rotary:
    rule = rotary(
        fields,
        rope_table(fields),
        head_dim=latent.rotated,
        theta=fields.positive("rope_theta", 10_000.0),
        context=sizes.context,
        original_context=fields.optional_size("original_max_position_embeddings"),
    )
    return replace(rule, trailing=True)


def _magnitude(fields: Fields, factor: float) -> float:
    """Return what YaRN multiplies queries and keys by, all their channels (mscale_all_dim).

    ``factor`` is by how much it stretches, 1 where nothing is scaled.
    """
    scale = Fields(rope_table(fields)).number("mscale_all_dim", 0.0)
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _experts(fields: Fields, sizes: Sizes, *, grouped: bool) -> Experts:
    """Return experts whose weights are a softmax over all."""
    number = fields.size("n_routed_experts")
    experts = Experts(
        number=number,
        chosen=fields.size("num_experts_per_tok"),
        hidden=sizes.hidden,
        size=fields.size("moe_intermediate_size"),
        router="mlp.gate",
        projections=(
            ("gate", "mlp.experts.{}.gate_proj"),
            ("up", "mlp.experts.{}.up_proj"),
            ("down", "mlp.experts.{}.down_proj"),
        ),
        normalised=False,
        factor=fields.positive("routed_scaling_factor", 1.0),
        groups=fields.size("n_group", 1) if grouped else 1,
        chosen_groups=fields.size("topk_group", 1) if grouped else 1,
    )
    if fields.raw("moe_layer_freq") not in (None, 1):
        fields.problems.append("moe_layer_freq is not 1: layers without experts come first")
    return checked_groups(fields, checked_experts(fields, experts))


def _sparse(fields: Fields, sizes: Sizes) -> frozenset[int]:
    """Return the layers that have experts."""
    types = fields.items("mlp_layer_types", str, sizes.layers)
    types = types or ["dense", *["sparse"] * (sizes.layers - 1)]
    strange = set(types) - {"dense", "sparse"}
    if strange:
        fields.problems.append(
            f"mlp_layer_types holds unsupported types: {sorted(map(str, strange))}"
        )
    return frozenset(layer for layer, kind in enumerate(types) if kind == "sparse")


def _shape(
    fields: Fields,
    family: str,
    parts: _Parts,
    experts: Experts,
    sparse: frozenset[int] | range,
) -> ModelShape:
    sizes = parts.sizes
    whole = decoder(
        fields,
        sizes,
        family=family,
        linears=_projections(parts, bias=fields.flag("attention_bias", False)) + gated_mlp(sizes),
        norms=pre_norms(sizes) + _latent_norms(parts),
        attention=(parts.rule,) * sizes.layers,
        norm=rms_norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
    width = experts.size * fields.size("n_shared_experts")
    shared = gated_mlp(replace(sizes, ffn=width), module="mlp.shared_experts")
    shape = with_experts(whole, lambda layer: experts if layer in sparse else None, shared)
    return replace(shape, ahead=fields.count("num_nextn_predict_layers", 1))


def _projections(parts: _Parts, *, bias: bool) -> tuple[Linear, ...]:
    """Return the projections of attention; queries are made in one step or two."""
    sizes, latent, name = parts.sizes, parts.latent, "self_attn."
    hidden, queries = sizes.hidden, sizes.heads * sizes.head_dim
    values = sizes.heads * latent.value_dim
    of_latents = queries - sizes.heads * latent.rotated + values
    width = latent.rank + latent.rotated
    return (
        *_query_projections(parts, queries, bias=bias),
        Linear(
            role="kv_a", module=f"{name}kv_a_proj_with_mqa", inputs=hidden, outputs=width, bias=bias
        ),
        Linear(role="kv_b", module=f"{name}kv_b_proj", inputs=latent.rank, outputs=of_latents),
        Linear(role="o", module=f"{name}o_proj", inputs=values, outputs=hidden, bias=bias),
    )


def _query_projections(parts: _Parts, queries: int, *, bias: bool) -> tuple[Linear, ...]:
    hidden, rank, name = parts.sizes.hidden, parts.query_rank, "self_attn.q"
    if rank is None:
        return (Linear(role="q", module=f"{name}_proj", inputs=hidden, outputs=queries),)
    return (
        Linear(role="q_a", module=f"{name}_a_proj", inputs=hidden, outputs=rank, bias=bias),
        Linear(role="q_b", module=f"{name}_b_proj", inputs=rank, outputs=queries),
    )


def _latent_norms(parts: _Parts) -> tuple[Norm, ...]:
    name, rank, kind = "self_attn.", parts.latent.rank, _LATENT_NORM
    norms = (Norm(role="kv_a", module=f"{name}kv_a_layernorm", size=rank, kind=kind),)
    if parts.query_rank is None:
        return norms
    queries = Norm(role="q_a", module=f"{name}q_a_layernorm", size=parts.query_rank, kind=kind)
    return (queries, *norms)
