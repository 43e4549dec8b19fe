"""Falcon and Falcon 2: fused projections of queries that share keys, halves that read the same."""

from __future__ import annotations

from dataclasses import replace

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    blocks,
    fused_attention,
    plain_mlp,
    pre_norms,
    read_rotary,
    read_sizes,
    same_attention,
)
from edgetune.shape import ModelShape, Norm, NormKind

_PARALLEL = "it has the new architecture, but parallel_attn is false"


def falcon(fields: Fields) -> ModelShape:
    """Return the shape of a Falcon model of the first two generations."""
    fields.refuse("alibi", "biases of scores that are rounded to 16 bits are not supported")
    new = fields.flag("new_decoder_architecture", False)
    several = fields.flag("multi_query", True)
    parallel = fields.flag("parallel_attn", True)
    if new and not parallel:
        fields.problems.append(_PARALLEL)
    sizes = _sizes(fields, new=new, several=several)
    bias = fields.flag("bias", False)
    return ModelShape(
        family="falcon",
        hidden_size=sizes.hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", True),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_epsilon", 1e-5)),
        blocks=blocks(
            sizes,
            linears=fused_attention(
                sizes, "self_attention.query_key_value", "self_attention.dense", bias=bias
            )
            + plain_mlp(sizes, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=bias),
            norms=_norms(fields, sizes, new=new, parallel=parallel),
            attention=same_attention(sizes, read_rotary(fields, sizes)),
            activation=fields.activation("activation", "gelu"),
            parallel=parallel,
            interleaved_qkv=new or not several,
        ),
        final_norm=Norm(role="final", module="transformer.ln_f", size=sizes.hidden, bias=True),
        embedding="transformer.word_embeddings",
        head="lm_head",
        block_prefix="transformer.h.{}.",
    )


def _sizes(fields: Fields, *, new: bool, several: bool) -> Sizes:
    heads = fields.size("num_attention_heads")
    own = fields.optional_size("num_kv_heads") or heads
    wide = 4 * fields.size("hidden_size")
    given = fields.with_defaults(intermediate_size=fields.raw("ffn_hidden_size") or wide)
    sizes = read_sizes(given.with_values(head_dim=None, num_key_value_heads=None))
    kv_heads = own if new or not several else 1
    if heads % kv_heads:
        fields.problems.append(f"{heads} heads cannot share {kv_heads} key-value heads evenly")
        kv_heads = heads
    return replace(sizes, kv_heads=kv_heads)


def _norms(fields: Fields, sizes: Sizes, *, new: bool, parallel: bool) -> tuple[Norm, ...]:
    if not parallel:
        return pre_norms(sizes, bias=True)
    if new and fields.size("num_ln_in_parallel_attn", 2) == 2:
        return (
            Norm(role="attention_input", module="ln_attn", size=sizes.hidden, bias=True),
            Norm(role="mlp_input", module="ln_mlp", size=sizes.hidden, bias=True),
        )
    return pre_norms(sizes, bias=True)[:1]
