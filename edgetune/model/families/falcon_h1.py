"""Falcon-H1: in every block Mamba-2 beside attention, and a multiplier for each of their parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgetune.escapes import short
from edgetune.model.config import Fields, is_number
from edgetune.model.families.common import (
    decoder,
    gated_mlp,
    read_rotary,
    read_sizes,
    rms_norm,
    same_attention,
    split_attention,
)
from edgetune.model.families.scanning import mixer_linears, mixer_norms, read_mixer
from edgetune.network.mixers.state_space import StateSpace
from edgetune.shape import BlockShape, ModelShape, Norm

_SCAN_PARTS: Final = 5
"""Gate, values, keys, queries and steps."""


def falcon_h1(fields: Fields) -> ModelShape:
    """Return the shape of a Falcon-H1 model."""
    fields = fields.with_defaults(intermediate_size=14336)
    named = fields.has("num_key_value_heads")  # null means as many as there are heads
    sizes = read_sizes(fields, kv_heads=None if named else 8, context=8192)
    bias = fields.flag("attention_bias", False)
    shape = decoder(
        fields,
        sizes,
        family="falcon_h1",
        linears=split_attention(sizes, bias=bias, output_bias=bias)
        + gated_mlp(sizes, bias=fields.flag("mlp_bias", False), module="feed_forward"),
        norms=(
            Norm(role="attention_input", module="input_layernorm", size=sizes.hidden),
            Norm(role="mlp_input", module="pre_ff_layernorm", size=sizes.hidden),
        ),
        attention=same_attention(sizes, read_rotary(fields, sizes)),
        norm=rms_norm(fields, 1e-5),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        logit_scale=fields.number("lm_head_multiplier", 1.0),
    )
    block = _block(fields, shape.blocks[0], shape)
    return replace(
        shape,
        blocks=(block,) * sizes.layers,
        final_norm=Norm(role="final", module="model.final_layernorm", size=sizes.hidden),
    )


def _block(fields: Fields, attending: BlockShape, shape: ModelShape) -> BlockShape:
    """Return a block that attends, with Mamba-2 beside it and its multipliers."""
    if attending.activation != "silu":
        fields.problems.append(
            f"hidden_act is {attending.activation}: Mamba layers are supported with silu alone"
        )
    width = fields.optional_size("mamba_d_ssm")
    if width is None:
        own = 1024 if not fields.has("mamba_d_ssm") else None
        width = own or fields.size("mamba_expand", 2) * shape.hidden_size
    mixer, normed = _mixer(fields, width), fields.flag("mamba_rms_norm", False)
    scale = fields.number("ssm_out_multiplier", 1.0)
    into, out = mixer_linears(
        mixer,
        shape.hidden_size,
        bias=fields.flag("mamba_proj_bias", False),
        output_bias=fields.flag("projectors_bias", False),
    )
    scans = (into, replace(out, scale=scale, grouped=False))  # PEFT refuses its adapters
    scales = _scales(fields)
    scaled = (replace(x, scale=scales.get(x.role, 1.0)) for x in attending.linears)
    return replace(
        attending,
        beside=mixer,
        linears=(*scaled, *scans),
        norms=attending.norms + mixer_norms(mixer, shape.norm if normed else None),
    )


def _mixer(fields: Fields, width: int) -> StateSpace:
    """Return the mixer; what its input is multiplied by multiplies all that is made of it."""
    own = _numbers(fields, "ssm_multipliers", _SCAN_PARTS)
    whole = fields.number("ssm_in_multiplier", 1.0)
    if whole != 1.0 and fields.flag("mamba_proj_bias", False):
        fields.problems.append("ssm_in_multiplier is not 1 beside mamba_proj_bias: not supported")
    multipliers = tuple(whole * each for each in own)
    return replace(
        read_mixer(fields, width),
        multipliers=() if set(multipliers) == {1.0} else multipliers,
        normed_first=fields.flag("mamba_norm_before_gate", True),
    )


def _scales(fields: Fields) -> dict[str, float]:
    """Return the multipliers of the projections of attention and MLP by their roles."""
    gate, down = _numbers(fields, "mlp_multipliers", 2)
    read = fields.number("attention_in_multiplier", 1.0)
    if read != 1.0 and fields.flag("attention_bias", False):
        fields.problems.append(
            "attention_in_multiplier is not 1 beside attention_bias: not supported"
        )
    return {
        "q": read,
        "k": read * fields.number("key_multiplier", 1.0),
        "v": read,
        "o": fields.number("attention_out_multiplier", 1.0),
        "gate": gate,
        "down": down,
    }


def _numbers(fields: Fields, name: str, count: int) -> tuple[float, ...]:
    """Return so many multipliers, ones where there are none."""
    value = fields.raw(name)
    if value is None:
        return (1.0,) * count
    if isinstance(value, list | tuple) and len(value) == count and all(map(is_number, value)):
        return tuple(map(float, value))
    fields.problems.append(f"{name} must be {count} numbers; found {short(value)}")
    return (1.0,) * count
