"""Granite: Llama with four multipliers; Granite 4 fuses gate and up, and scans in its hybrids."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
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
from edgetune.model.families.scanning import read_mixer, scanning
from edgetune.shape import (
    MLP_ROLES,
    Attention,
    BlockShape,
    Experts,
    Fused,
    ModelShape,
)

_ATTENTION: Final = frozenset({"attention", "full_attention"})
_SCAN: Final = frozenset({"mamba", "linear_attention"})


def granite(fields: Fields) -> ModelShape:
    """Return the shape of a Granite model of the first three generations."""
    sizes = read_sizes(fields)
    layer = Attention(scale=_scale(fields), rotary=read_rotary(fields, sizes))
    return _multiplied(fields, like_llama(fields, sizes, "granite", (layer,) * sizes.layers))


def granitemoe(fields: Fields) -> ModelShape:
    """Return the shape of a mixture of Granite 3."""
    sizes = read_sizes(fields)
    layer = Attention(scale=_scale(fields), rotary=read_rotary(fields, sizes))
    plain = fields.with_values(mlp_bias=False)
    shape = like_llama(plain, sizes, "granitemoe", (layer,) * sizes.layers)
    experts = _experts(fields, sizes, expert_count(fields, 8))
    return _multiplied(fields, with_experts(shape, lambda _: experts))


def granitemoehybrid(fields: Fields) -> ModelShape:
    """Return the shape of a Granite 4 model: Mamba-2 in most layers of the hybrids (H).

    An MLP that all tokens go through stands beside the experts of the mixtures, and alone in others.
    """
    width = fields.size("shared_intermediate_size", 1024)
    sizes = read_sizes(fields.with_defaults(intermediate_size=11008))
    rotates = fields.raw("position_embedding_type") == "rope"
    layer = Attention(scale=_scale(fields), rotary=read_rotary(fields, sizes) if rotates else None)
    bias, shared = fields.flag("attention_bias", False), replace(sizes, ffn=width)
    shape = decoder(
        fields,
        shared,
        family="granitemoehybrid",
        linears=split_attention(sizes, bias=bias, output_bias=bias)
        + fused_mlp(shared, "shared_mlp.input_linear", "shared_mlp.output_linear"),
        norms=pre_norms(sizes),
        attention=(layer,) * sizes.layers,
        norm=rms_norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
    shape = replace(shape, blocks=_blocks(fields, shape))
    number = fields.count("num_local_experts", 8)
    if number:
        experts = _experts(fields, sizes, number)
        mlp = tuple(x for x in shape.blocks[0].linears if x.role in MLP_ROLES)
        shape = with_experts(shape, lambda _: experts, mlp)
    return _multiplied(fields, shape)


def _blocks(fields: Fields, shape: ModelShape) -> tuple[BlockShape, ...]:
    """Return the blocks by their types, of a shape all of whose blocks attend."""
    name = "layer_types" if fields.has("layer_types") else "layers_block_type"
    types = fields.items(name, str, shape.layers)
    types = ["mamba"] * shape.layers if types is None else types
    strange = sorted(set(map(str, types)) - _ATTENTION - _SCAN)
    if strange:
        fields.problems.append(f"{name} holds unsupported types: {strange}")
    if _ATTENTION.isdisjoint(map(str, types)):
        fields.problems.append("none of its layers has attention: that is not supported")
    if _SCAN.isdisjoint(map(str, types)):
        return shape.blocks
    attending, bias = shape.blocks[0], fields.flag("mamba_proj_bias", False)
    if attending.activation != "silu":
        fields.problems.append(
            f"hidden_act is {attending.activation}: Mamba layers are supported with silu alone"
        )
    mixer = read_mixer(fields, fields.size("mamba_expand", 2) * shape.hidden_size)
    scans = scanning(
        attending, mixer, shape.hidden_size, shape.norm, bias=bias, output_bias=bias
    )  # fmt: skip
    return tuple(attending if str(each) in _ATTENTION else scans for each in types)


def _experts(fields: Fields, sizes: Sizes, number: int) -> Experts:
    """Return the experts of a mixture: files have all of them in two tensors."""
    experts = Experts(
        number=number,
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
        stack="block_sparse_moe.experts",
    )
    return checked_experts(fields, experts)


def _scale(fields: Fields) -> float:
    return fields.number("attention_multiplier", 1.0)


def _multiplied(fields: Fields, shape: ModelShape) -> ModelShape:
    return replace(
        shape,
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / fields.positive("logits_scaling", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
    )
