"""Models that differ from Llama in a few switches: biases, the rotation, the MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    gated_mlp,
    interleaved,
    layer_types,
    plain_mlp,
    pre_norms,
    read_rotary,
    read_sizes,
    rms_norm,
    same_attention,
    split_attention,
)
from edgetune.model.families.llama import like_llama
from edgetune.model.rotary import rope_table
from edgetune.shape import Attention, ModelShape, Norm, NormKind, Rotary

_CWM_ROTATION: Final[Mapping[str, object]] = {
    "rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
"""The rotation of a Code World Model whose config does not say."""


def arcee(fields: Fields) -> ModelShape:
    """Return the shape of an AFM model: an MLP without a gate, of squared ReLUs."""
    sizes = read_sizes(fields)
    bias = fields.flag("attention_bias", False)
    return decoder(
        fields,
        sizes,
        family="arcee",
        linears=split_attention(sizes, bias=bias, output_bias=bias)
        + plain_mlp(sizes, bias=fields.flag("mlp_bias", False)),
        norms=pre_norms(sizes),
        attention=same_attention(sizes, read_rotary(fields, sizes)),
        norm=rms_norm(fields, 1e-5),
        activation=fields.activation("hidden_act", "relu2"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def cwm(fields: Fields) -> ModelShape:
    """Return the shape of a Code World Model: every fourth layer sees all, others a window."""
    given = fields.table("rope_scaling") or fields.table("rope_parameters")
    fields = fields.with_values(rope_scaling=None, rope_parameters=given or dict(_CWM_ROTATION))
    sizes = read_sizes(fields, kv_heads=8, head_dim=128, context=131_072)
    window = fields.size("sliding_window", 8192)
    full = Attention(scale=sizes.head_dim**-0.5, rotary=read_rotary(fields, sizes, theta=1e6))
    default = ["sliding_attention" if x % 4 else "full_attention" for x in range(sizes.layers)]
    types = layer_types(fields, sizes, default)
    sliding = replace(full, window=window)
    attention = [sliding if name == "sliding_attention" else full for name in types]
    plain = fields.with_values(attention_bias=False)
    return like_llama(plain, sizes, "cwm", attention, eps=1e-5)


def ernie4_5(fields: Fields) -> ModelShape:
    """Return the shape of a dense ERNIE 4.5 model: channels rotate in pairs, one switch for biases."""
    sizes = read_sizes(fields, kv_heads=2, head_dim=128, context=131_072)
    bias = fields.flag("use_bias", False)
    rotary = interleaved(read_rotary(fields, sizes, theta=500_000.0))
    both = fields.with_values(attention_bias=bias, mlp_bias=bias)
    return like_llama(both, sizes, "ernie4_5", same_attention(sizes, rotary), tied=True, eps=1e-5)


def helium(fields: Fields) -> ModelShape:
    """Return the shape of a Helium model: channels rotate in pairs, no bias on the output."""
    sizes = read_sizes(fields, kv_heads=20, head_dim=128, context=4096)
    if sizes.heads * sizes.head_dim != sizes.hidden:
        fields.problems.append(
            f"{sizes.heads} heads of {sizes.head_dim} are not the hidden_size {sizes.hidden}"
        )
    bias = fields.flag("attention_bias", False)
    return decoder(
        fields,
        sizes,
        family="helium",
        linears=split_attention(sizes, bias=bias, output_bias=False)
        + gated_mlp(sizes, bias=fields.flag("mlp_bias", False)),
        norms=pre_norms(sizes),
        attention=same_attention(sizes, interleaved(read_rotary(fields, sizes, theta=100_000.0))),
        norm=rms_norm(fields, 1e-8),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def hunyuan_v1_dense(fields: Fields) -> ModelShape:
    """Return the shape of a dense Hunyuan model: queries and keys are normalised once rotated."""
    sizes = read_sizes(fields)
    norms = (
        Norm(role="q", module="self_attn.query_layernorm", size=sizes.head_dim),
        Norm(role="k", module="self_attn.key_layernorm", size=sizes.head_dim),
    )
    bias = fields.flag("attention_bias", False)
    return decoder(
        fields,
        sizes,
        family="hunyuan_v1_dense",
        linears=split_attention(sizes, bias=bias, output_bias=bias) + gated_mlp(sizes),
        norms=pre_norms(sizes) + norms,
        attention=same_attention(sizes, _hunyuan_rotary(fields, sizes)),
        norm=rms_norm(fields, 1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        normed_after_rotation=True,
    )


def _hunyuan_rotary(fields: Fields, sizes: Sizes) -> Rotary:
    """Read the rotation; its configs call a fixed, larger base frequency ``dynamic``."""
    table = rope_table(fields)
    inner, size = Fields(table), sizes.head_dim
    alpha = inner.number("alpha", 0.0)
    if (table.get("rope_type") or table.get("type")) != "dynamic" or alpha <= 0 or size <= 2:
        return read_rotary(fields, sizes)
    theta = inner.positive("rope_theta", fields.positive("rope_theta", 10_000.0))
    fields.problems += [f"rotary settings: {problem}" for problem in inner.problems]
    return Rotary(theta=theta * alpha ** (size / (size - 2)), dimensions=size)


def nemotron(fields: Fields) -> ModelShape:
    """Return the shape of a dense Nemotron or Minitron model.

    Its layer norms keep weights around zero, half of each head rotates, and the MLP is as Arcee's.
    """
    sizes = read_sizes(fields, context=4096)
    bias = fields.flag("attention_bias", False)
    return decoder(
        fields,
        sizes,
        family="nemotron",
        linears=split_attention(sizes, bias=bias, output_bias=bias)
        + plain_mlp(sizes, bias=fields.flag("mlp_bias", False)),
        norms=pre_norms(sizes, bias=True),
        attention=same_attention(sizes, read_rotary(fields, sizes, partial=0.5)),
        norm=NormKind(kind="layer", eps=fields.positive("norm_eps", 1e-5), offset=1.0),
        activation=fields.activation("hidden_act", "relu2"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def seed_oss(fields: Fields) -> ModelShape:
    """Return the shape of a Seed-OSS model: biases on queries, keys and values."""
    sizes = read_sizes(fields, kv_heads=8, head_dim=128, context=524_288)
    return decoder(
        fields,
        sizes,
        family="seed_oss",
        linears=split_attention(
            sizes,
            bias=fields.flag("attention_bias", True),
            output_bias=fields.flag("attention_out_bias", False),
        )
        + gated_mlp(sizes, bias=fields.flag("mlp_bias", False)),
        norms=pre_norms(sizes),
        attention=same_attention(sizes, read_rotary(fields, sizes)),
        norm=rms_norm(fields),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
