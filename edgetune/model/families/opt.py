"""OPT: learned positions, of which the first two rows are never used, and biases everywhere."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    blocks,
    plain_mlp,
    read_sizes,
    same_attention,
)
from edgetune.shape import Linear, ModelShape, Norm, NormKind


def opt(fields: Fields) -> ModelShape:
    """Return the shape of an OPT model."""
    _refuse(fields)
    wide = fields.with_values(
        intermediate_size=fields.size("ffn_dim"), head_dim=None, num_key_value_heads=None
    )
    sizes = read_sizes(wide)
    hidden, bias = sizes.hidden, fields.flag("enable_bias", True)
    return ModelShape(
        family="opt",
        hidden_size=hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", True),
        norm=NormKind(kind="layer", eps=1e-5),
        blocks=blocks(
            sizes,
            linears=_attention(sizes, bias=bias) + plain_mlp(sizes, "fc1", "fc2", bias=bias),
            norms=(
                Norm(role="attention_input", module="self_attn_layer_norm", size=hidden, bias=True),
                Norm(role="mlp_input", module="final_layer_norm", size=hidden, bias=True),
            ),
            attention=same_attention(sizes, None),
            activation=fields.activation("activation_function", "relu"),
        ),
        final_norm=Norm(
            role="final", module="model.decoder.final_layer_norm", size=hidden, bias=True
        ),
        embedding="model.decoder.embed_tokens",
        head="lm_head",
        block_prefix="model.decoder.layers.{}.",
        positions="model.decoder.embed_positions",
        position_offset=2,
    )


def _refuse(fields: Fields) -> None:
    """Note what the 350 M model has beside all others."""
    if not fields.flag("do_layer_norm_before", True):
        fields.problems.append("do_layer_norm_before is False: norms behind sums are not supported")
    if not fields.flag("layer_norm_elementwise_affine", True):
        fields.problems.append("norms without weights are not supported")
    fields.refuse("_remove_final_layer_norm", "a model without a last norm is not supported")
    width = fields.optional_size("word_embed_proj_dim")
    if width not in (None, fields.raw("hidden_size")):
        fields.problems.append(f"word_embed_proj_dim {width} is not the hidden size")


def _attention(sizes: Sizes, *, bias: bool) -> tuple[Linear, ...]:
    hidden = sizes.hidden
    return (
        Linear(role="q", module="self_attn.q_proj", inputs=hidden, outputs=hidden, bias=bias),
        Linear(role="k", module="self_attn.k_proj", inputs=hidden, outputs=hidden, bias=bias),
        Linear(role="v", module="self_attn.v_proj", inputs=hidden, outputs=hidden, bias=bias),
        Linear(role="o", module="self_attn.out_proj", inputs=hidden, outputs=hidden, bias=bias),
    )
