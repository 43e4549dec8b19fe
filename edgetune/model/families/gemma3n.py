"""Gemma 3n: four streams, of which a block computes one (AltUp), and a low-rank map beside attention.

The first layers' gates are sparse, the last layers read the keys and values of earlier ones, and all
read numbers of their own of each token (per-layer embeddings).
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import Final

from edgetune.altup import AltUp
from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.model.families.common import (
    MOST_LAYERS,
    Sizes,
    alternating,
    decoder,
    gated_mlp,
    head_norms,
    layer_types,
    read_sizes,
    rms_norm,
    rotary_of_type,
    sandwich_norms,
    split_attention,
)
from edgetune.model.families.gemma4 import FULL, SLIDING, key_sources, per_layer_inputs
from edgetune.shape import Attention, BlockShape, Linear, ModelShape, Norm

_THETA: Final = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}
_SPARSE_LAYERS: Final = 10
_SPARSITY: Final = 0.95
"""Share of the gate that is left out in the first layers of a model whose config does not say."""


def gemma3n_text(fields: Fields) -> ModelShape:
    """Return the shape of a Gemma 3n language model."""
    fields = fields.with_defaults(
        hidden_size=2048,
        num_hidden_layers=35,
        num_attention_heads=8,
        vocab_size=262_400,
    )
    layers = fields.size("num_hidden_layers", most=MOST_LAYERS)
    widths = _by_layer(fields, "intermediate_size", 16_384, layers)
    sizes = read_sizes(
        fields.with_values(intermediate_size=max(widths)),
        kv_heads=2,
        head_dim=256,
        context=32_768,
    )
    bias = fields.flag("attention_bias", False)
    rule = _altup(fields)
    shape = decoder(
        fields,
        sizes,
        family="gemma3n_text",
        linears=split_attention(sizes, bias=bias, output_bias=bias),
        norms=_norms(sizes),
        attention=_attention(fields, sizes),
        norm=rms_norm(fields),
        activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        tied=fields.flag("tie_word_embeddings", True),
        embedding_scale=sizes.hidden**0.5,
        logit_softcap=fields.number("final_logit_softcapping", 30.0),
    )
    per_layer = fields.size("hidden_size_per_layer_input", 256)
    reader = _Blocks(sizes, rule, per_layer, fields.size("laurel_rank", 64))
    each = zip(shape.blocks, widths, _cutoffs(fields, layers), strict=True)
    return replace(
        shape,
        blocks=tuple(reader.block(block, int(width), cutoff) for block, width, cutoff in each),
        per_layer=per_layer_inputs(fields, per_layer),
    )


def _by_layer(fields: Fields, name: str, default: int, layers: int) -> list[int]:
    """Return a size of every layer; a config may say one of all."""
    listed = fields.raw(name)
    if not isinstance(listed, list):
        return [fields.size(name, default)] * layers
    sizes = [x for x in listed if isinstance(x, int) and not isinstance(x, bool) and x > 0]
    if len(sizes) != layers or sizes != listed:
        fields.problems.append(f"{name} must be {layers} sizes; found {short(listed)}")
        return [1] * layers
    return sizes


def _cutoffs(fields: Fields, layers: int) -> list[float | None]:
    """Return by how many deviations each layer's gate has to be above its mean, None if all passes."""
    sparse = _SPARSE_LAYERS if layers > _SPARSE_LAYERS else 0
    shares = fields.raw("activation_sparsity_pattern")
    if shares is None:
        shares = [_SPARSITY] * sparse + [0.0] * (layers - sparse)
    listed = shares if isinstance(shares, list) else []
    if len(listed) != layers or not all(isinstance(x, int | float) and 0 <= x < 1 for x in listed):
        fields.problems.append(
            f"activation_sparsity_pattern must be {layers} shares below 1; found {short(shares)}"
        )
        return [None] * layers
    return [NormalDist().inv_cdf(share) if share else None for share in listed]


def _altup(fields: Fields) -> AltUp:
    count, active = fields.size("altup_num_inputs", 4), fields.count("altup_active_idx", 0)
    if active >= count:
        fields.problems.append(f"altup_active_idx is {active}: there are {count} streams")
    entries, exits = (
        tuple(f"model.altup_{name}projections.{stream}" for stream in range(count - 1))
        for name in ("", "unembed_")
    )
    return AltUp(
        count=count,
        active=min(active, count - 1),
        scaled=fields.flag("altup_correct_scale", True),
        module="altup",
        entries=entries,
        exits=exits,
    )


def _attention(fields: Fields, sizes: Sizes) -> list[Attention]:
    types = list(layer_types(fields, sizes, alternating(sizes, 5)))
    sources = key_sources(fields.with_defaults(num_kv_shared_layers=15), types)
    window = fields.size("sliding_window", 512)
    rotaries = {
        kind: rotary_of_type(fields, sizes, kind, fields.positive(name, theta))
        for kind, (name, theta) in _THETA.items()
    }
    return [
        Attention(
            scale=1.0,
            rotary=rotaries[kind],
            window=window if kind == SLIDING else None,
            source=sources[layer],
            lends=layer in sources,
        )
        for layer, kind in enumerate(types)
    ]


def _norms(sizes: Sizes) -> tuple[Norm, ...]:
    v = Norm(role="v", module="self_attn.v_norm", size=sizes.head_dim, plain=True)
    return (
        *sandwich_norms(sizes),
        *head_norms(sizes.head_dim, sizes.head_dim),
        v,
        Norm(role="altup", module="altup.router_norm", size=sizes.hidden),
        Norm(role="laurel", module="laurel.post_laurel_norm", size=sizes.hidden),
        Norm(role="per_layer", module="post_per_layer_input_norm", size=sizes.hidden),
    )


class _Blocks:
    """Makes the blocks of one model."""

    def __init__(self, sizes: Sizes, altup: AltUp, per_layer: int, rank: int) -> None:
        self.sizes, self.altup, self.per_layer, self.rank = sizes, altup, per_layer, rank

    def block(self, attending: BlockShape, width: int, cutoff: float | None) -> BlockShape:
        """Return a block of one that only attends: its MLP's width, how sparse its gate is."""
        rule = attending.attention
        dropped = {"k", "v"} if rule is not None and rule.source is not None else set()
        kept = tuple(x for x in attending.linears if x.role not in dropped)
        return replace(
            attending,
            ffn_size=width,
            linears=kept + gated_mlp(replace(self.sizes, ffn=width)) + self._beside(),
            norms=tuple(x for x in attending.norms if x.role not in dropped),
            per_layer=self.per_layer,
            altup=self.altup,
            cutoff=cutoff,
        )

    def _beside(self) -> tuple[Linear, ...]:
        hidden, rank, size = self.sizes.hidden, self.rank, self.per_layer
        return (
            Linear(role="laurel_left", module="laurel.linear_left", inputs=hidden, outputs=rank),
            Linear(role="laurel_right", module="laurel.linear_right", inputs=rank, outputs=hidden),
            Linear(
                role="per_layer_gate", module="per_layer_input_gate", inputs=hidden, outputs=size
            ),
            Linear(
                role="per_layer_out", module="per_layer_projection", inputs=size, outputs=hidden
            ),
        )
