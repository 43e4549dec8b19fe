"""LFM2 and LFM2.5: short convolutions in most blocks, attention in some."""

from __future__ import annotations

from dataclasses import replace

from edgetune.model.config import Fields
from edgetune.model.families.common import Sizes, decoder, head_norms, read_rotary, read_sizes
from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune.shape import (
    Attention,
    BlockShape,
    Linear,
    ModelShape,
    Norm,
    NormKind,
)

_TYPES = ("full_attention", "conv")


def lfm2(fields: Fields) -> ModelShape:
    """Return the shape of a dense LFM2 model."""
    fields = _as_they_are_read(fields)
    sizes = read_sizes(fields, kv_heads=8, context=128_000)
    sizes = replace(sizes, ffn=_inner_size(fields, sizes.ffn))
    rule = Attention(
        scale=sizes.head_dim**-0.5, rotary=read_rotary(fields, sizes, theta=1_000_000.0)
    )
    whole = decoder(
        fields,
        sizes,
        family="lfm2",
        linears=_attention(sizes) + _mlp(sizes),
        norms=_norms(sizes) + _head_norms(sizes),
        attention=(rule,) * sizes.layers,
        norm=NormKind(kind="rms", eps=fields.positive("norm_eps", 1e-5)),
        activation="silu",
        tied=fields.flag("tie_word_embeddings", True),
    )
    attending = whole.blocks[0]
    convolving = _convolving(attending, sizes, fields)
    return replace(
        whole,
        blocks=tuple(
            attending if kind == "full_attention" else convolving
            for kind in _layer_types(fields, sizes)
        ),
        final_norm=Norm(role="final", module="model.embedding_norm", size=sizes.hidden),
    )


def _as_they_are_read(fields: Fields) -> Fields:
    """Return the fields under the names that transformers gives them; older ones come first."""
    older = {"intermediate_size": "block_ff_dim", "tie_word_embeddings": "tie_embedding"}
    given = {new: fields.raw(old) for new, old in older.items() if fields.raw(old) is not None}
    return fields.with_values(**given)


def _inner_size(fields: Fields, size: int) -> int:
    """Return the width of the MLP: two thirds of what the config says, rounded up to a multiple."""
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    if fields.has("block_ffn_dim_multiplier") and fields.raw("block_ffn_dim_multiplier") is None:
        return size
    size = int(fields.positive("block_ffn_dim_multiplier", 1.0) * size)
    multiple = fields.size("block_multiple_of", 256)
    return -(-size // multiple) * multiple


def _layer_types(fields: Fields, sizes: Sizes) -> list[object]:
    types = fields.items("layer_types", str, sizes.layers)
    if types is None:
        attending = fields.raw("full_attn_idxs")
        every = attending if isinstance(attending, list) else range(sizes.layers)
        types = [_TYPES[layer not in every] for layer in range(sizes.layers)]
    strange = set(types) - set(_TYPES)
    if strange:
        fields.problems.append(f"layer_types holds unsupported types: {sorted(map(str, strange))}")
    elif "full_attention" not in types:
        fields.problems.append("none of its layers has attention: that is not supported")
    return types


def _attention(sizes: Sizes) -> tuple[Linear, ...]:
    query, key, hidden = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.hidden
    return (
        Linear(role="q", module="self_attn.q_proj", inputs=hidden, outputs=query),
        Linear(role="k", module="self_attn.k_proj", inputs=hidden, outputs=key),
        Linear(role="v", module="self_attn.v_proj", inputs=hidden, outputs=key),
        Linear(role="o", module="self_attn.out_proj", inputs=query, outputs=hidden),
    )


def _mlp(sizes: Sizes) -> tuple[Linear, ...]:
    hidden, ffn = sizes.hidden, sizes.ffn
    return (
        Linear(role="gate", module="feed_forward.w1", inputs=hidden, outputs=ffn),
        Linear(role="up", module="feed_forward.w3", inputs=hidden, outputs=ffn),
        Linear(role="down", module="feed_forward.w2", inputs=ffn, outputs=hidden),
    )


def _norms(sizes: Sizes) -> tuple[Norm, ...]:
    return (
        Norm(role="attention_input", module="operator_norm", size=sizes.hidden),
        Norm(role="mlp_input", module="ffn_norm", size=sizes.hidden),
    )


def _head_norms(sizes: Sizes) -> tuple[Norm, ...]:
    q, k = head_norms(sizes.head_dim, sizes.head_dim)
    return replace(q, module="self_attn.q_layernorm"), replace(k, module="self_attn.k_layernorm")


def _convolving(attending: BlockShape, sizes: Sizes, fields: Fields) -> BlockShape:
    """Return the block with a convolution in the place of attention."""
    hidden, bias = sizes.hidden, fields.flag("conv_bias", False)
    return replace(
        attending,
        heads=0,
        kv_heads=0,
        head_dim=0,
        mixer=ShortConvolution(
            channels=hidden, taps=fields.size("conv_L_cache", 3), module="conv.conv", bias=bias
        ),
        linears=(
            Linear(
                role="conv_in", module="conv.in_proj", inputs=hidden, outputs=3 * hidden, bias=bias
            ),
            Linear(
                role="conv_out", module="conv.out_proj", inputs=hidden, outputs=hidden, bias=bias
            ),
            *_mlp(sizes),
        ),
        norms=_norms(sizes),
    )
