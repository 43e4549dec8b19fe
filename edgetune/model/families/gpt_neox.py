"""GPT-NeoX (Pythia): both halves read the same input, a quarter of each head rotates."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import Sizes, blocks, pre_norms, read_sizes, same_attention
from edgetune.model.rotary import rope_table, rotary
from edgetune.shape import Linear, ModelShape, Norm, NormKind, Rotary


def gpt_neox(fields: Fields) -> ModelShape:
    """Return the shape of a GPT-NeoX model."""
    # whatever the config says of heads beside their number
    sizes = read_sizes(fields.with_values(head_dim=None, num_key_value_heads=None))
    return ModelShape(
        family="gpt_neox",
        hidden_size=sizes.hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", False),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_eps", 1e-5)),
        blocks=blocks(
            sizes,
            linears=_linears(sizes, bias=fields.flag("attention_bias", True)),
            norms=pre_norms(sizes, bias=True),
            attention=same_attention(sizes, _rotary(fields, sizes)),
            activation=fields.activation("hidden_act", "gelu"),
            parallel=fields.flag("use_parallel_residual", True),
            interleaved_qkv=True,
        ),
        final_norm=Norm(
            role="final", module="gpt_neox.final_layer_norm", size=sizes.hidden, bias=True
        ),
        embedding="gpt_neox.embed_in",
        head="embed_out",
        block_prefix="gpt_neox.layers.{}.",
    )


def _rotary(fields: Fields, sizes: Sizes) -> Rotary:
    # a share beside the table is not read: it is called rotary_pct there
    return rotary(
        fields,
        rope_table(fields.with_values(partial_rotary_factor=None)),
        head_dim=sizes.head_dim,
        theta=fields.positive("rotary_emb_base", 10_000.0),
        context=sizes.context,
        partial=fields.positive("rotary_pct", 0.25),
    )


def _linears(sizes: Sizes, *, bias: bool) -> tuple[Linear, ...]:
    hidden, ffn = sizes.hidden, sizes.ffn
    fused = "attention.query_key_value"
    return (
        Linear(role="qkv", module=fused, inputs=hidden, outputs=3 * hidden, bias=bias),
        Linear(role="o", module="attention.dense", inputs=hidden, outputs=hidden, bias=bias),
        Linear(role="up", module="mlp.dense_h_to_4h", inputs=hidden, outputs=ffn, bias=True),
        Linear(role="down", module="mlp.dense_4h_to_h", inputs=ffn, outputs=hidden, bias=True),
    )
