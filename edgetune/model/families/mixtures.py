"""Mixtures of experts whose blocks are those of a dense family but for the MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    gated_mlp,
    head_norms,
    pre_norms,
    read_rotary,
    read_sizes,
    read_window,
    rms_norm,
    same_attention,
    split_attention,
)
from edgetune.shape import MLP_ROLES, Experts, Linear, ModelShape, Norm

BLOCK_SPARSE: Final[tuple[tuple[Literal["gate", "up", "down"], str], ...]] = (
    ("gate", "block_sparse_moe.experts.{}.w1"),
    ("up", "block_sparse_moe.experts.{}.w3"),
    ("down", "block_sparse_moe.experts.{}.w2"),
)
"""Projections of an expert by the names that Mixtral gave them, and others after it."""


def qwen3_moe(fields: Fields) -> ModelShape:
    """Return the shape of a Qwen3 mixture: every layer has experts, or every so manieth."""
    sizes = read_sizes(
        fields.with_defaults(intermediate_size=6144), kv_heads=4, head_dim=None, context=32768
    )
    bias, every = fields.flag("attention_bias", False), _every(fields)
    sliding = fields.flag("use_sliding_window", False)
    window = read_window(fields, 4096) if sliding else None
    experts = _experts(
        fields,
        sizes,
        number=expert_count(fields, 128),
        chosen=8,
        size=fields.size("moe_intermediate_size", 768),
        normalised=fields.flag("norm_topk_prob", False),
    )
    dense = _numbers(fields, "mlp_only_layers")
    return with_experts(
        _shape(
            fields, sizes, "qwen3_moe", head_norms(sizes.head_dim, sizes.head_dim), bias, window
        ),
        lambda layer: None if layer in dense or (layer + 1) % every else experts,
    )


def qwen2_moe(fields: Fields) -> ModelShape:
    """Return the shape of a Qwen2 mixture: an MLP for all tokens stands beside the experts."""
    sizes = read_sizes(fields.with_defaults(intermediate_size=5632), kv_heads=16, context=32768)
    fields.refuse("use_sliding_window", "layers with windows are not supported")
    experts = replace(
        _experts(
            fields,
            sizes,
            number=expert_count(fields, 60),
            chosen=4,
            size=fields.size("moe_intermediate_size", 1408),
            normalised=fields.flag("norm_topk_prob", False),
        ),
        shared_gate="mlp.shared_expert_gate",
    )
    width, every = fields.size("shared_expert_intermediate_size", 5632), _every(fields)
    dense, bias = _numbers(fields, "mlp_only_layers"), fields.flag("qkv_bias", True)
    shape = _shape(fields, sizes, "qwen2_moe", (), bias, None, output_bias=False)
    return with_experts(
        shape,
        lambda layer: None if layer in dense or (layer + 1) % every else experts,
        gated_mlp(replace(sizes, ffn=width), module="mlp.shared_expert"),
    )


def olmoe(fields: Fields) -> ModelShape:
    """Return the shape of an OLMoE model, with norms of all queries and of all keys."""
    fields.refuse("clip_qkv", "clipped queries, keys and values are not supported")
    sizes = read_sizes(fields, context=4096)
    experts = _experts(
        fields,
        sizes,
        number=expert_count(fields, 64),
        chosen=8,
        size=sizes.ffn,
        normalised=fields.flag("norm_topk_prob", False),
    )
    norms = head_norms(sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim)
    bias = fields.flag("attention_bias", False)
    shape = _shape(fields, sizes, "olmoe", norms, bias, None, eps=1e-5)
    return with_experts(shape, lambda _: experts)


def mixtral(fields: Fields) -> ModelShape:
    """Return the shape of a Mixtral model; its noise on inputs of routers is for pretraining."""
    sizes = read_sizes(fields, kv_heads=8, context=4096 * 32)
    experts = Experts(
        number=expert_count(fields, 8),
        chosen=fields.size("num_experts_per_tok", 2),
        hidden=sizes.hidden,
        size=sizes.ffn,
        router="block_sparse_moe.gate",
        projections=BLOCK_SPARSE,
        normalised=True,
    )
    window = fields.optional_size("sliding_window")
    shape = _shape(fields, sizes, "mixtral", (), False, window, eps=1e-5, theta=1e6)
    return with_experts(shape, lambda _: checked_experts(fields, experts))


def with_experts(
    shape: ModelShape,
    experts_of: Callable[[int], Experts | None],
    shared: tuple[Linear, ...] = (),
) -> ModelShape:
    """Return a shape in whose layers experts are in the place of the MLP, where there are any.

    ``shared`` are the projections of an MLP for all tokens that stands beside them.
    """
    wide = max((x.inputs for x in shared if x.role == "down"), default=None)
    blocks = []
    for layer, block in enumerate(shape.blocks):
        experts = experts_of(layer)
        if experts is not None:
            linears = tuple(x for x in block.linears if x.role not in MLP_ROLES)
            block = replace(  # noqa: PLW2901
                block, linears=linears + shared, ffn_size=wide or experts.size, experts=experts
            )
        blocks.append(block)
    return replace(shape, blocks=tuple(blocks))


def _shape(
    fields: Fields,
    sizes: Sizes,
    family: str,
    norms: tuple[Norm, ...],
    bias: bool,
    window: int | None,
    *,
    eps: float = 1e-6,
    theta: float = 10_000.0,
    output_bias: bool | None = None,
) -> ModelShape:
    """Return the dense model that has an MLP where experts will be."""
    rotary = read_rotary(fields, sizes, theta=theta)
    return decoder(
        fields,
        sizes,
        family=family,
        linears=split_attention(
            sizes, bias=bias, output_bias=bias if output_bias is None else output_bias
        )
        + gated_mlp(sizes),
        norms=pre_norms(sizes) + norms,
        attention=same_attention(sizes, rotary, window),
        norm=rms_norm(fields, eps),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def _experts(
    fields: Fields, sizes: Sizes, *, number: int, chosen: int, size: int, normalised: bool
) -> Experts:
    """Return experts under the names that Qwen gave them."""
    experts = Experts(
        number=number,
        chosen=fields.size("num_experts_per_tok", chosen),
        hidden=sizes.hidden,
        size=size,
        router="mlp.gate",
        projections=(
            ("gate", "mlp.experts.{}.gate_proj"),
            ("up", "mlp.experts.{}.up_proj"),
            ("down", "mlp.experts.{}.down_proj"),
        ),
        normalised=normalised,
    )
    return checked_experts(fields, experts)


def checked_experts(fields: Fields, experts: Experts, name: str = "num_experts_per_tok") -> Experts:
    """Return experts, of which no token chooses more than there are."""
    if experts.chosen <= experts.number:
        return experts
    fields.problems.append(f"{name} is {experts.chosen}, but there are {experts.number} experts")
    return replace(experts, chosen=experts.number)


def corrected(fields: Fields, experts: Experts) -> Experts:
    """Return experts whose weights are sigmoids, corrected where experts are chosen."""
    refuse_other(fields, "scoring_func", "sigmoid")
    refuse_other(fields, "topk_method", "noaux_tc")
    if experts.groups > 1 and experts.number // experts.groups < 2:
        fields.problems.append("n_group leaves groups of one expert, which are chosen by two")
    return replace(
        experts,
        score="sigmoid",
        normalised=fields.flag("norm_topk_prob", True),
        correction=f"{experts.router}.e_score_correction_bias",
    )


def refuse_other(fields: Fields, name: str, only: str) -> None:
    """Note a problem where a field says that experts are chosen in another way than the family's.

    transformers does not read these fields, and would choose as the family does.
    """
    value = fields.raw(name)
    if value not in (None, only):
        fields.problems.append(f"{name} is {short(value)}: only {only} is supported")


def checked_groups(fields: Fields, experts: Experts) -> Experts:
    """Return experts in groups of one size, of which those chosen have as many as are wanted."""
    number, groups, chosen = experts.number, experts.groups, experts.chosen_groups
    if number % groups == 0 and chosen <= groups:
        if experts.chosen <= number // groups * chosen:
            return experts if chosen < groups else replace(experts, groups=1, chosen_groups=1)
        fields.problems.append(
            f"num_experts_per_tok is {experts.chosen}, but {chosen} of {groups} groups have "
            f"{number // groups * chosen} of {number} experts"
        )
    else:
        fields.problems.append(
            f"n_group is {groups} and topk_group {chosen}: {number} experts cannot be chosen so"
        )
    return replace(experts, groups=1, chosen_groups=1)


def _every(fields: Fields) -> int:
    """Return how manieth layers have experts, if they are not among the others."""
    return fields.size("decoder_sparse_step", 1)


def expert_count(fields: Fields, default: int) -> int:
    """Return how many experts there are: transformers has two names for it."""
    found = fields.optional_size("num_local_experts") or fields.optional_size("num_experts")
    return found or default


def _numbers(fields: Fields, name: str) -> frozenset[int]:
    """Return the layers that a list names."""
    found = fields.raw(name)
    if found is None:
        return frozenset()
    if isinstance(found, list) and all(isinstance(x, int) for x in found):
        return frozenset(found)
    fields.problems.append(f"{name} must be a list of layers")
    return frozenset()
