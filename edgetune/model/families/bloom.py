"""BLOOM and MPT: no rotation, scores fall with the distance (ALiBi, Press et al. 2022)."""

from __future__ import annotations

from math import ceil, floor, log2

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    MOST_LAYERS,
    Sizes,
    blocks,
    fused_attention,
    plain_mlp,
    pre_norms,
)
from edgetune.shape import Attention, ModelShape, Norm, NormKind

CONTEXT = 2048
"""Tokens of the rows that BLOOM was trained with: its config does not say."""


def bloom(fields: Fields) -> ModelShape:
    """Return the shape of a BLOOM model: its embeddings are normalised, too."""
    fields.refuse(
        "apply_residual_connection_post_layernorm", "a stream of normalised values is not supported"
    )
    hidden = fields.size(_either(fields, "n_embed", "hidden_size"))
    layers = _either(fields, "n_layer", "num_hidden_layers")
    heads = _either(fields, "n_head", "num_attention_heads")
    sizes = _sizes(fields, hidden, layers, heads, fields.size("seq_length", CONTEXT))
    attention = Attention(scale=sizes.head_dim**-0.5, slopes=slopes(sizes.heads))
    return ModelShape(
        family="bloom",
        hidden_size=hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", True),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_epsilon", 1e-5)),
        blocks=blocks(
            sizes,
            linears=fused_attention(
                sizes, "self_attention.query_key_value", "self_attention.dense", bias=True
            )
            + plain_mlp(sizes, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
            norms=pre_norms(sizes, bias=True),
            attention=(attention,) * sizes.layers,
            activation="gelu_tanh",
            interleaved_qkv=True,
        ),
        final_norm=Norm(role="final", module="transformer.ln_f", size=hidden, bias=True),
        embedding="transformer.word_embeddings",
        embedding_norm=Norm(
            role="embedding", module="transformer.word_embeddings_layernorm", size=hidden, bias=True
        ),
        head="lm_head",
        block_prefix="transformer.h.{}.",
    )


def mpt(fields: Fields) -> ModelShape:
    """Return the shape of an MPT model: nothing in it has a bias."""
    fields = fields.with_names(
        d_model="hidden_size", n_layers="num_hidden_layers", n_heads="num_attention_heads"
    )
    sizes = _sizes(
        fields, fields.size("d_model"), "n_layers", "n_heads", fields.size("max_seq_len", 2048)
    )
    if not fields.flag("no_bias", True):
        fields.problems.append("no_bias is False: biases are not supported")
    attention = _mpt_attention(fields, sizes)
    hidden = sizes.hidden
    return ModelShape(
        family="mpt",
        hidden_size=hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", True),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_epsilon", 1e-5)),
        blocks=blocks(
            sizes,
            linears=fused_attention(sizes, "attn.Wqkv", "attn.out_proj", bias=False)
            + plain_mlp(sizes, "ffn.up_proj", "ffn.down_proj", bias=False),
            norms=(
                Norm(role="attention_input", module="norm_1", size=hidden),
                Norm(role="mlp_input", module="norm_2", size=hidden),
            ),
            attention=(attention,) * sizes.layers,
            activation="gelu",
        ),
        final_norm=Norm(role="final", module="transformer.norm_f", size=hidden),
        embedding="transformer.wte",
        head="lm_head",
        block_prefix="transformer.blocks.{}.",
    )


def slopes(heads: int) -> tuple[float, ...]:
    """Return the slope of each head: powers of two, those of more heads between them.

    >>> slopes(3)
    (0.0625, 0.00390625, 0.25)
    """
    most = 2 ** floor(log2(heads))
    first = [2.0 ** (-8 * (at + 1) / most) for at in range(most)]
    between = [2.0 ** (-8 * (at + 1) / (2 * most)) for at in range(0, 2 * (heads - most), 2)]
    return (*first, *between)


def _either(fields: Fields, name: str, other: str) -> str:
    """Return the one of two names for a field that a config has, the first if none."""
    return other if fields.raw(name) is None and fields.raw(other) is not None else name


def _mpt_attention(fields: Fields, sizes: Sizes) -> Attention:
    inner = Fields(fields.table("attn_config"))
    for switch in ("clip_qkv", "qk_ln", "prefix_lm"):
        inner.refuse(switch, "it is not supported")
    if not inner.flag("alibi", True):
        inner.problems.append("alibi is False: positions of another kind are not supported")
    kind = inner.raw("attn_type") or "multihead_attention"
    if kind != "multihead_attention":
        inner.problems.append(f"attn_type {kind!r} is not supported")
    steepest = inner.size("alibi_bias_max", 8)
    scale = inner.positive("softmax_scale", sizes.head_dim**-0.5)
    fields.problems += [f"attn_config: {problem}" for problem in inner.problems]
    return Attention(scale=scale, slopes=_mpt_slopes(sizes.heads, steepest))


def _mpt_slopes(heads: int, steepest: int) -> tuple[float, ...]:
    """Return every second slope first, where heads are no power of two."""
    count = 2 ** ceil(log2(heads))
    every = [2.0 ** (-steepest * (at + 1) / count) for at in range(count)]
    return tuple(every if count == heads else [*every[1::2], *every[::2]][:heads])


def _sizes(fields: Fields, hidden: int, layers: str, heads: str, context: int) -> Sizes:
    count = fields.size(heads)
    if hidden % count:
        fields.problems.append(f"{hidden} channels are not a multiple of {count} heads")
    return Sizes(
        hidden=hidden,
        ffn=4 * hidden,
        layers=fields.size(layers, most=MOST_LAYERS),
        heads=count,
        kv_heads=count,
        head_dim=max(hidden // count, 1),
        vocabulary=fields.size("vocab_size"),
        context=context,
    )
