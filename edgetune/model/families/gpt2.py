"""GPT-2: learned positions, one fused projection, matrices stored the other way round."""

from __future__ import annotations

from edgetune.model.config import Fields
from edgetune.model.families.common import MOST_LAYERS, Sizes, blocks
from edgetune.shape import Attention, Linear, LinearRole, ModelShape, Norm, NormKind


def gpt2(fields: Fields) -> ModelShape:
    """Return the shape of a GPT-2 model."""
    sizes = _sizes(fields)
    hidden = sizes.hidden
    fields.refuse("add_cross_attention", "a decoder that reads an encoder is not supported")
    return ModelShape(
        family="gpt2",
        hidden_size=hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", True),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_epsilon", 1e-5)),
        blocks=blocks(
            sizes,
            linears=_linears(hidden, sizes.ffn),
            norms=(
                Norm(role="attention_input", module="ln_1", size=hidden, bias=True),
                Norm(role="mlp_input", module="ln_2", size=hidden, bias=True),
            ),
            attention=_attention(fields, sizes.layers, sizes.head_dim),
            activation=fields.activation("activation_function", "gelu_new"),
        ),
        final_norm=Norm(role="final", module="transformer.ln_f", size=hidden, bias=True),
        embedding="transformer.wte",
        head="lm_head",
        block_prefix="transformer.h.{}.",
        positions="transformer.wpe",
    )


def _sizes(fields: Fields) -> Sizes:
    hidden, heads = fields.size("n_embd"), fields.size("n_head")
    if hidden % heads:
        fields.problems.append(f"n_embd {hidden} is not a multiple of {heads} heads")
    return Sizes(
        hidden=hidden,
        ffn=fields.size("n_inner", 4 * hidden),
        layers=fields.size("n_layer", most=MOST_LAYERS),
        heads=heads,
        kv_heads=heads,
        head_dim=max(hidden // heads, 1),
        vocabulary=fields.size("vocab_size"),
        context=fields.size("n_positions", 1024),
    )


def _attention(fields: Fields, layers: int, head_dim: int) -> tuple[Attention, ...]:
    scale = head_dim**-0.5 if fields.flag("scale_attn_weights", True) else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
    return tuple(
        Attention(scale=scale / (layer + 1) if by_layer else scale) for layer in range(layers)
    )


def _linears(hidden: int, ffn: int) -> tuple[Linear, ...]:
    return (
        _conv1d("qkv", "attn.c_attn", hidden, 3 * hidden),
        _conv1d("o", "attn.c_proj", hidden, hidden),
        _conv1d("up", "mlp.c_fc", hidden, ffn),
        _conv1d("down", "mlp.c_proj", ffn, hidden),
    )


def _conv1d(role: LinearRole, module: str, inputs: int, outputs: int) -> Linear:
    return Linear(
        role=role, module=module, inputs=inputs, outputs=outputs, bias=True, transposed=True
    )
