"""Apertus: Llama with norms of queries and keys, and xIELU instead of a gate in the MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    head_norms,
    plain_mlp,
    read_rotary,
    read_sizes,
    rms_norm,
    same_attention,
    split_attention,
)
from edgetune.shape import ModelShape, Norm

_ROTATION: Final[Mapping[str, object]] = {
    "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
"""The rotation of a model whose config does not say."""
_XIELU: Final = "mlp.act_fn"


def apertus(fields: Fields) -> ModelShape:
    """Return the shape of an Apertus model."""
    sizes = read_sizes(fields, context=65_536)
    fields.refuse("mlp_bias", "biases in the MLP are not supported")
    fields.refuse("post_norm", "norms behind the sublayers are not supported")
    if not fields.flag("qk_norm", True):
        fields.problems.append("qk_norm is off: queries and keys without norms are not supported")
    learned = fields.raw("hidden_act") in (None, "xielu")
    bias = fields.flag("attention_bias", False)
    shape = decoder(
        fields,
        sizes,
        family="apertus",
        linears=split_attention(sizes, bias=bias, output_bias=bias) + plain_mlp(sizes, bias=False),
        norms=_norms(sizes),
        attention=same_attention(sizes, read_rotary(_rotating(fields), sizes, theta=12e6)),
        norm=rms_norm(fields, 1e-5),
        activation="xielu" if learned else fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )
    module = _XIELU if learned else None
    return replace(shape, blocks=tuple(replace(block, xielu=module) for block in shape.blocks))


def _norms(sizes: Sizes) -> tuple[Norm, ...]:
    return (
        Norm(role="attention_input", module="attention_layernorm", size=sizes.hidden),
        Norm(role="mlp_input", module="feedforward_layernorm", size=sizes.hidden),
        *head_norms(sizes.head_dim, sizes.head_dim),
    )


def _rotating(fields: Fields) -> Fields:
    """Return the fields with the usual rotation where no table is; as in transformers, whole.

    Its base frequency is the usual one then, whatever ``rope_theta`` says.
    """
    given = fields.table("rope_scaling") or fields.raw("rope_parameters") is not None
    return fields if given else fields.with_values(rope_parameters=dict(_ROTATION))
