"""The parts that most families share: sizes, projections, norms, and where things are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgetune.model.config import Fields
from edgetune.model.rotary import rope_table, rotary
from edgetune.shape import (
    Activation,
    Attention,
    BlockShape,
    Linear,
    ModelShape,
    Norm,
    NormKind,
    Rotary,
)

MOST_LAYERS: Final = 10_000
"""Far above every model; a damaged config must not ask for a list of billions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The numbers every decoder has, in elements."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int


def read_sizes(
    fields: Fields,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    context: int = 2048,
) -> Sizes:
    """Read the sizes under the names that most configs give them; defaults are the family's."""
    hidden = fields.size("hidden_size")
    heads = fields.size("num_attention_heads")
    head_dim = fields.optional_size("head_dim") or head_dim
    kv_heads = fields.size("num_key_value_heads", kv_heads or heads)
    if head_dim is None and hidden % heads:
        fields.problems.append(f"hidden_size {hidden} is not a multiple of {heads} heads")
    if heads % kv_heads:
        fields.problems.append(f"{heads} heads cannot share {kv_heads} key-value heads evenly")
    return Sizes(
        hidden=hidden,
        ffn=fields.size("intermediate_size"),
        layers=fields.size("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or max(hidden // heads, 1),
        vocabulary=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings", context),
    )


def read_rotary(
    fields: Fields, sizes: Sizes, *, theta: float = 10_000.0, partial: float | None = None
) -> Rotary:
    """Read the one rotary embedding that all layers share."""
    return rotary(
        fields,
        rope_table(fields),
        head_dim=sizes.head_dim,
        theta=fields.positive("rope_theta", theta),
        context=sizes.context,
        original_context=fields.optional_size("original_max_position_embeddings"),
        partial=partial,
    )


def same_attention(
    sizes: Sizes, rule: Rotary | None, window: int | None = None
) -> tuple[Attention, ...]:
    """Return the usual attention, the same in every layer."""
    layer = Attention(scale=sizes.head_dim**-0.5, window=window, rotary=rule)
    return (layer,) * sizes.layers


def read_window(fields: Fields, default: int) -> int | None:
    """Return how far tokens see where there is a window: a null means without end, as in transformers."""
    return fields.optional_size("sliding_window") if fields.has("sliding_window") else default


def interleaved(rule: Rotary) -> Rotary:
    """Return the same rotation of neighbouring channels."""
    return replace(rule, interleaved=True)


def rotary_of_type(fields: Fields, sizes: Sizes, layer_type: str, theta: float) -> Rotary:
    """Read the rotation of one type of layers; ``rope_scaling`` is that of those that see all.

    As in transformers a ``rope_scaling`` alone, without ``rope_type``, is none whatever its ``type``.
    """
    tables = Fields(fields.table("rope_parameters"))
    silent = fields.raw("rope_parameters") is None
    table = {"rope_type": "default"} if silent else tables.table(layer_type)
    if layer_type == "full_attention":
        table |= fields.table("rope_scaling")
    fields.problems += tables.problems
    return rotary(fields, table, head_dim=sizes.head_dim, theta=theta, context=sizes.context)


def alternating(sizes: Sizes, every: int) -> list[str]:
    """Return the types of layers of which all but every so manieth have a window."""
    return [
        "sliding_attention" if (layer + 1) % every else "full_attention"
        for layer in range(sizes.layers)
    ]


def layer_types(fields: Fields, sizes: Sizes, default: Sequence[str]) -> Sequence[str]:
    """Return for every layer ``full_attention`` or ``sliding_attention``."""
    types = fields.items("layer_types", str, sizes.layers)
    strange = set(types or ()) - {"full_attention", "sliding_attention"}
    if strange:
        fields.problems.append(f"layer_types holds unsupported types: {sorted(map(str, strange))}")
    return default if types is None else [str(name) for name in types]


def split_attention(sizes: Sizes, *, bias: bool, output_bias: bool) -> tuple[Linear, ...]:
    """Return separate projections for queries, keys, values and the output."""
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    hidden = sizes.hidden
    return (
        Linear(role="q", module="self_attn.q_proj", inputs=hidden, outputs=query, bias=bias),
        Linear(role="k", module="self_attn.k_proj", inputs=hidden, outputs=key, bias=bias),
        Linear(role="v", module="self_attn.v_proj", inputs=hidden, outputs=key, bias=bias),
        Linear(role="o", module="self_attn.o_proj", inputs=query, outputs=hidden, bias=output_bias),
    )


def fused_attention(sizes: Sizes, fused: str, output: str, *, bias: bool) -> tuple[Linear, ...]:
    """Return one projection for queries, keys and values, and that of the output."""
    query, key, hidden = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.hidden
    width = query + 2 * key
    return (
        Linear(role="qkv", module=fused, inputs=hidden, outputs=width, bias=bias),
        Linear(role="o", module=output, inputs=query, outputs=hidden, bias=bias),
    )


def gated_mlp(sizes: Sizes, *, bias: bool = False, module: str = "mlp") -> tuple[Linear, ...]:
    """Return the three projections of ``down(activation(gate(x)) * up(x))``."""
    hidden, ffn = sizes.hidden, sizes.ffn
    return (
        Linear(role="gate", module=f"{module}.gate_proj", inputs=hidden, outputs=ffn, bias=bias),
        Linear(role="up", module=f"{module}.up_proj", inputs=hidden, outputs=ffn, bias=bias),
        Linear(role="down", module=f"{module}.down_proj", inputs=ffn, outputs=hidden, bias=bias),
    )


def fused_mlp(
    sizes: Sizes, gate_up: str = "mlp.gate_up_proj", down: str = "mlp.down_proj"
) -> tuple[Linear, ...]:
    """Return the two projections of a gated MLP whose gate and up are one."""
    hidden, ffn = sizes.hidden, sizes.ffn
    return (
        Linear(role="gate_up", module=gate_up, inputs=hidden, outputs=2 * ffn),
        Linear(role="down", module=down, inputs=ffn, outputs=hidden),
    )


def plain_mlp(
    sizes: Sizes, up: str = "mlp.up_proj", down: str = "mlp.down_proj", *, bias: bool
) -> tuple[Linear, ...]:
    """Return the two projections of ``down(activation(up(x)))``."""
    hidden, ffn = sizes.hidden, sizes.ffn
    return (
        Linear(role="up", module=up, inputs=hidden, outputs=ffn, bias=bias),
        Linear(role="down", module=down, inputs=ffn, outputs=hidden, bias=bias),
    )


def pre_norms(sizes: Sizes, *, bias: bool = False) -> tuple[Norm, ...]:
    """Return one norm before the attention and one before the MLP."""
    return (
        Norm(role="attention_input", module="input_layernorm", size=sizes.hidden, bias=bias),
        Norm(role="mlp_input", module="post_attention_layernorm", size=sizes.hidden, bias=bias),
    )


def sandwich_norms(sizes: Sizes) -> tuple[Norm, ...]:
    """Return norms before and behind the attention and the MLP (Gemma 2)."""
    hidden = sizes.hidden
    return (
        Norm(role="attention_input", module="input_layernorm", size=hidden),
        Norm(role="attention_output", module="post_attention_layernorm", size=hidden),
        Norm(role="mlp_input", module="pre_feedforward_layernorm", size=hidden),
        Norm(role="mlp_output", module="post_feedforward_layernorm", size=hidden),
    )


def output_norms(sizes: Sizes) -> tuple[Norm, ...]:
    """Return one norm behind the attention and one behind the MLP."""
    return (
        Norm(role="attention_output", module="post_attention_layernorm", size=sizes.hidden),
        Norm(role="mlp_output", module="post_feedforward_layernorm", size=sizes.hidden),
    )


def head_norms(q_size: int, k_size: int) -> tuple[Norm, ...]:
    """Return norms of queries and keys, over a head or over all heads by their sizes."""
    return (
        Norm(role="q", module="self_attn.q_norm", size=q_size),
        Norm(role="k", module="self_attn.k_norm", size=k_size),
    )


def blocks(
    sizes: Sizes,
    *,
    linears: Sequence[Linear],
    norms: Sequence[Norm],
    attention: Sequence[Attention],
    activation: Activation,
    parallel: bool = False,
    interleaved_qkv: bool = False,
    normed_after_rotation: bool = False,
) -> tuple[BlockShape, ...]:
    """Return blocks that differ in their attention alone."""
    kinds = {
        rule: BlockShape(
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            ffn_size=sizes.ffn,
            activation=activation,
            mixer=rule,
            linears=tuple(linears),
            norms=tuple(norms),
            parallel=parallel,
            interleaved_qkv=interleaved_qkv,
            normed_after_rotation=normed_after_rotation,
        )
        for rule in dict.fromkeys(attention)
    }
    return tuple(kinds[rule] for rule in attention)


def decoder(
    fields: Fields,
    sizes: Sizes,
    *,
    family: str,
    linears: Sequence[Linear],
    norms: Sequence[Norm],
    attention: Sequence[Attention],
    norm: NormKind,
    activation: Activation,
    tied: bool,
    embedding_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    residual_scale: float = 1.0,
    parallel: bool = False,
    normed_after_rotation: bool = False,
) -> ModelShape:
    """Return a decoder whose tensors are named as Llama's are."""
    return ModelShape(
        family=family,
        hidden_size=sizes.hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=tied,
        norm=norm,
        blocks=blocks(
            sizes,
            linears=linears,
            norms=norms,
            attention=attention,
            activation=activation,
            parallel=parallel,
            normed_after_rotation=normed_after_rotation,
        ),
        final_norm=Norm(
            role="final", module="model.norm", size=sizes.hidden, bias=norm.kind == "layer"
        ),
        embedding="model.embed_tokens",
        head="lm_head",
        block_prefix="model.layers.{}.",
        embedding_scale=embedding_scale,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        residual_scale=residual_scale,
    )


def rms_norm(fields: Fields, default: float = 1e-6, *, offset: float = 0.0) -> NormKind:
    """Return root-mean-square norms with the config's epsilon."""
    return NormKind(kind="rms", eps=fields.positive("rms_norm_eps", default), offset=offset)
