"""StarCoder2 and StableLM: Llama's layout with ordinary layer norms."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    gated_mlp,
    pre_norms,
    read_rotary,
    read_sizes,
    same_attention,
    split_attention,
)
from edgetune.shape import Linear, ModelShape, NormKind


def starcoder2(fields: Fields) -> ModelShape:
    """Return the shape of a StarCoder2 model: biases everywhere, an MLP without a gate."""
    sizes = read_sizes(fields, kv_heads=2, context=4096)
    bias = fields.flag("use_bias", True)
    window = fields.optional_size("sliding_window")
    return decoder(
        fields,
        sizes,
        family="starcoder2",
        linears=split_attention(sizes, bias=bias, output_bias=bias) + _plain_mlp(sizes, bias),
        norms=pre_norms(sizes, bias=True),
        attention=same_attention(sizes, read_rotary(fields, sizes), window),
        norm=NormKind(kind="layer", eps=fields.positive("norm_epsilon", 1e-5)),
        activation=fields.activation("hidden_act", "gelu_pytorch_tanh"),
        tied=fields.flag("tie_word_embeddings", True),
    )


def stablelm(fields: Fields) -> ModelShape:
    """Return the shape of a StableLM model: a quarter of each head rotates."""
    sizes = read_sizes(fields, kv_heads=32, context=4096)
    fields.refuse("qk_layernorm", "a separate norm for each head is not supported")
    fields.refuse("use_parallel_residual", "one norm for both halves is not supported")
    bias = fields.flag("use_qkv_bias", False)
    return decoder(
        fields,
        sizes,
        family="stablelm",
        linears=split_attention(sizes, bias=bias, output_bias=False) + gated_mlp(sizes),
        norms=pre_norms(sizes, bias=True),
        attention=same_attention(sizes, read_rotary(fields, sizes, partial=0.25)),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_eps", 1e-5)),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
    )


def _plain_mlp(sizes: Sizes, bias: bool) -> tuple[Linear, ...]:
    hidden, ffn = sizes.hidden, sizes.ffn
    return (
        Linear(role="up", module="mlp.c_fc", inputs=hidden, outputs=ffn, bias=bias),
        Linear(role="down", module="mlp.c_proj", inputs=ffn, outputs=hidden, bias=bias),
    )
