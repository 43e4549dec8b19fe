"""StarCoder2 and StableLM: Llama's layout with ordinary layer norms."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    decoder,
    gated_mlp,
    plain_mlp,
    pre_norms,
    read_rotary,
    read_sizes,
    same_attention,
    split_attention,
)
from edgetune.shape import ModelShape, NormKind


def starcoder2(fields: Fields) -> ModelShape:
    """Return the shape of a StarCoder2 model: biases everywhere, an MLP without a gate."""
    sizes = read_sizes(fields, kv_heads=2, context=4096)
    bias = fields.flag("use_bias", True)
    window = fields.optional_size("sliding_window")
    return decoder(
        fields,
        sizes,
        family="starcoder2",
        linears=split_attention(sizes, bias=bias, output_bias=bias)
        + plain_mlp(sizes, "mlp.c_fc", "mlp.c_proj", bias=bias),
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
    parallel = fields.flag("use_parallel_residual", False)
    bias = fields.flag("use_qkv_bias", False)
    return decoder(
        fields,
        sizes,
        family="stablelm",
        linears=split_attention(sizes, bias=bias, output_bias=False) + gated_mlp(sizes),
        norms=pre_norms(sizes, bias=True)[: 1 if parallel else 2],
        attention=same_attention(sizes, read_rotary(fields, sizes, partial=0.25)),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_eps", 1e-5)),
        activation=fields.activation("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        parallel=parallel,
    )
