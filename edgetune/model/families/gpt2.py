"""GPT-2, GPT-Neo and GPT-BigCode: learned positions, layer norms, MLPs without a gate.

GPT-2 has one fused projection, and matrices stored the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.model.families.common import (
    MOST_LAYERS,
    Sizes,
    blocks,
    fused_attention,
    plain_mlp,
)
from edgetune.shape import Attention, Linear, LinearRole, ModelShape, Norm, NormKind

_CROSS: Final = "a decoder that reads an encoder is not supported"
_NEO_ATTENTION: Final[Mapping[LinearRole, str]] = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "out_proj",
}


def gpt2(fields: Fields) -> ModelShape:
    """Return the shape of a GPT-2 model."""
    sizes = read_gpt_sizes(fields, context=1024)
    fields.refuse("add_cross_attention", _CROSS)
    return _shape(
        fields,
        sizes,
        "gpt2",
        linears=_linears(sizes.hidden, sizes.ffn),
        attention=_attention(fields, sizes.layers, sizes.head_dim),
        activation="gelu_new",
    )


def gpt_bigcode(fields: Fields) -> ModelShape:
    """Return the shape of a SantaCoder or StarCoder model: all queries share one key."""
    sizes = read_gpt_sizes(fields, context=1024)
    fields.refuse("add_cross_attention", _CROSS)
    shared = fields.flag("multi_query", True)
    sizes = replace(sizes, kv_heads=1 if shared else sizes.heads)
    scaled = fields.flag("scale_attn_weights", True)
    layer = Attention(scale=sizes.head_dim**-0.5 if scaled else 1.0)
    return _shape(
        fields,
        sizes,
        "gpt_bigcode",
        linears=fused_attention(sizes, "attn.c_attn", "attn.c_proj", bias=True)
        + plain_mlp(sizes, "mlp.c_fc", "mlp.c_proj", bias=True),
        attention=(layer,) * sizes.layers,
        activation="gelu_pytorch_tanh",
        interleaved_qkv=not shared,
    )


def gpt_neo(fields: Fields) -> ModelShape:
    """Return the shape of a GPT-Neo model: scores are not scaled, half of the layers are local."""
    sizes = _neo_sizes(fields)
    whole = Attention(scale=1.0)
    local = replace(whole, window=fields.size("window_size", 256))
    kinds = _neo_kinds(fields, sizes.layers)
    hidden = sizes.hidden
    projections = [
        Linear(role=role, module=f"attn.attention.{name}", inputs=hidden, outputs=hidden)
        for role, name in _NEO_ATTENTION.items()
    ]
    projections[-1] = replace(projections[-1], bias=True)
    return _shape(
        fields,
        sizes,
        "gpt_neo",
        linears=(*projections, *plain_mlp(sizes, "mlp.c_fc", "mlp.c_proj", bias=True)),
        attention=[local if kind == "local" else whole for kind in kinds],
        activation="gelu_new",
    )


def _shape(
    fields: Fields,
    sizes: Sizes,
    family: str,
    *,
    linears: Sequence[Linear],
    attention: Sequence[Attention],
    activation: str,
    interleaved_qkv: bool = False,
) -> ModelShape:
    hidden = sizes.hidden
    return ModelShape(
        family=family,
        hidden_size=hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", True),
        norm=NormKind(kind="layer", eps=fields.positive("layer_norm_epsilon", 1e-5)),
        blocks=blocks(
            sizes,
            linears=linears,
            norms=(
                Norm(role="attention_input", module="ln_1", size=hidden, bias=True),
                Norm(role="mlp_input", module="ln_2", size=hidden, bias=True),
            ),
            attention=attention,
            activation=fields.activation("activation_function", activation),
            interleaved_qkv=interleaved_qkv,
        ),
        final_norm=Norm(role="final", module="transformer.ln_f", size=hidden, bias=True),
        embedding="transformer.wte",
        head="lm_head",
        block_prefix="transformer.h.{}.",
        positions="transformer.wpe",
    )


def _neo_sizes(fields: Fields) -> Sizes:
    fields = fields.with_names(num_heads="num_attention_heads", num_layers="num_hidden_layers")
    hidden, heads = fields.size("hidden_size"), fields.size("num_heads")
    if hidden % heads:
        fields.problems.append(f"hidden_size {hidden} is not a multiple of {heads} heads")
    return Sizes(
        hidden=hidden,
        ffn=fields.size("intermediate_size", 4 * hidden),
        layers=fields.size("num_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=heads,
        head_dim=max(hidden // heads, 1),
        vocabulary=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings", 2048),
    )


def _neo_kinds(fields: Fields, layers: int) -> list[object]:
    """Return ``global`` or ``local`` for each layer.

    ``attention_types`` says ``[[[kinds], times], …]``; a list of all layers, ``attention_layers``,
    goes first, as in transformers, which wants both to be of as many layers as there are.
    """
    listed = fields.raw("attention_layers")
    name = "attention_types" if listed is None else "attention_layers"
    given = (fields.raw(name) or [[["global", "local"], 12]]) if listed is None else [[listed, 1]]
    try:
        kinds = [kind for group, times in cast("Any", given) for kind in list(group) * times]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != layers or not {"global", "local"}.issuperset(map(str, kinds)):
        fields.problems.append(
            f"{name} must say global or local for {layers} layers; found {short(fields.raw(name))}"
        )
        return ["global"] * layers
    return kinds


def read_gpt_sizes(fields: Fields, *, context: int) -> Sizes:
    """Read the sizes under the names that GPT-2's config gives them, or under the usual ones."""
    fields = fields.with_names(
        n_embd="hidden_size",
        n_layer="num_hidden_layers",
        n_head="num_attention_heads",
        n_positions="max_position_embeddings",
    )
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
        context=fields.size("n_positions", context),
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
