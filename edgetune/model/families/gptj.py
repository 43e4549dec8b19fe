"""GPT-J, Phi-1 and Phi-2: both halves of a block read one layer norm, and the head has a bias."""

from __future__ import annotations

from dataclasses import replace

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    blocks,
    decoder,
    plain_mlp,
    pre_norms,
    read_rotary,
    read_sizes,
    same_attention,
    split_attention,
)
from edgetune.model.families.gpt2 import read_gpt_sizes
from edgetune.shape import Linear, ModelShape, Norm, NormKind, Rotary


def gptj(fields: Fields) -> ModelShape:
    """Return the shape of a GPT-J model: the first channels of a head rotate in pairs."""
    sizes = read_gpt_sizes(fields, context=2048)
    size = fields.size("rotary_dim", 64)
    known = not fields.problems  # with which a head has no size
    if known and (size > sizes.head_dim or size % 2):
        fields.problems.append(f"rotary_dim {size} is not an even part of {sizes.head_dim}")
    rotary = Rotary(theta=10_000.0, dimensions=size, interleaved=True)
    return ModelShape(
        family="gptj",
        hidden_size=sizes.hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", False),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_epsilon", 1e-5)),
        blocks=blocks(
            sizes,
            linears=_gptj_attention(sizes) + plain_mlp(sizes, "mlp.fc_in", "mlp.fc_out", bias=True),
            norms=(Norm(role="attention_input", module="ln_1", size=sizes.hidden, bias=True),),
            attention=same_attention(sizes, rotary),
            activation=fields.activation("activation_function", "gelu_new"),
            parallel=True,
        ),
        final_norm=Norm(role="final", module="transformer.ln_f", size=sizes.hidden, bias=True),
        embedding="transformer.wte",
        head="lm_head",
        block_prefix="transformer.h.{}.",
        head_bias=True,
    )


def phi(fields: Fields) -> ModelShape:
    """Return the shape of a Phi-1, Phi-1.5 or Phi-2 model: half of each head rotates."""
    sizes = read_sizes(fields)
    fields.refuse("qk_layernorm", "norms of queries and keys are not supported")
    *inputs, output = split_attention(sizes, bias=True, output_bias=True)
    shape = decoder(
        fields,
        sizes,
        family="phi",
        linears=(
            *inputs,
            replace(output, module="self_attn.dense"),
            *plain_mlp(sizes, "mlp.fc1", "mlp.fc2", bias=True),
        ),
        norms=pre_norms(sizes, bias=True)[:1],
        attention=same_attention(sizes, read_rotary(fields, sizes, partial=0.5)),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_eps", 1e-5)),
        activation=fields.activation("hidden_act", "gelu_new"),
        tied=fields.flag("tie_word_embeddings", False),
        parallel=True,
    )
    final = replace(shape.final_norm, module="model.final_layernorm")
    return replace(shape, final_norm=final, head_bias=True)


def _gptj_attention(sizes: Sizes) -> tuple[Linear, ...]:
    hidden = sizes.hidden
    return (
        Linear(role="q", module="attn.q_proj", inputs=hidden, outputs=hidden),
        Linear(role="k", module="attn.k_proj", inputs=hidden, outputs=hidden),
        Linear(role="v", module="attn.v_proj", inputs=hidden, outputs=hidden),
        Linear(role="o", module="attn.out_proj", inputs=hidden, outputs=hidden),
    )
