"""Gemma 4: layers that see a window and layers that see all differ in heads and rotation.

The last layers can read the keys and values of earlier ones, all layers numbers of their own of
each token (per-layer embeddings), and keys can be values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    alternating,
    gated_mlp,
    head_norms,
    layer_types,
    read_sizes,
    rms_norm,
    rotary_of_type,
    sandwich_norms,
    split_attention,
)
from edgetune.model.families.mixtures import checked_experts
from edgetune.shape import (
    Attention,
    BlockShape,
    Experts,
    Fused,
    Linear,
    ModelShape,
    Norm,
    PerLayerInputs,
)

FULL, SLIDING = "full_attention", "sliding_attention"
_THETA: Mapping[str, float] = {FULL: 1e6, SLIDING: 1e4}
_PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
_OWN_SIZES = frozenset({"head_dim", "num_key_value_heads"})


def gemma4_text(fields: Fields) -> ModelShape:
    """Return the shape of a Gemma 4 language model."""
    return _shape(fields, "gemma4_text", per_layer=fields.count("hidden_size_per_layer_input", 256))


def gemma4_unified_text(fields: Fields) -> ModelShape:
    """Return the shape of the language model in Gemma 4 12B, which has no per-layer embeddings."""
    fields = fields.with_defaults(max_position_embeddings=262_144, sliding_window=1024)
    return _shape(fields, "gemma4_unified_text", per_layer=0)


def _shape(fields: Fields, family: str, *, per_layer: int) -> ModelShape:
    fields = fields.with_defaults(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=30,
        num_attention_heads=8,
        vocab_size=262_144,
    )
    if fields.raw("use_bidirectional_attention") == "all":
        fields.problems.append(
            "use_bidirectional_attention is 'all': attention that looks ahead cannot be trained as "
            "a causal language model"
        )
    sizes = read_sizes(fields, kv_heads=4, head_dim=256, context=131_072)
    plans = _plans(fields, sizes)
    reader = _Blocks(fields, sizes, per_layer)
    return ModelShape(
        family=family,
        hidden_size=sizes.hidden,
        vocabulary=sizes.vocabulary,
        max_context=sizes.context,
        dtype=fields.dtype(),
        tied=fields.flag("tie_word_embeddings", True),
        norm=rms_norm(fields),
        blocks=tuple(reader.block(plan) for plan in plans),
        final_norm=Norm(role="final", module="model.norm", size=sizes.hidden),
        embedding="model.embed_tokens",
        head="lm_head",
        block_prefix="model.layers.{}.",
        embedding_scale=sizes.hidden**0.5,
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        per_layer=per_layer_inputs(fields, per_layer) if per_layer else None,
    )


def per_layer_inputs(fields: Fields, size: int) -> PerLayerInputs:
    """Return what makes the numbers of its own that each block reads."""
    return PerLayerInputs(
        size=size,
        rows=fields.size("vocab_size_per_layer_input", 262_144),
        table="model.embed_tokens_per_layer",
        projection="model.per_layer_model_projection",
        norm=Norm(role="per_layer", module="model.per_layer_projection_norm", size=size),
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What makes a layer: its type and sizes, whose keys it reads, whether others read its own."""

    kind: str
    head_dim: int
    kv_heads: int
    source: int | None
    lends: bool


def _plans(fields: Fields, sizes: Sizes) -> list[_Plan]:
    types = [*layer_types(fields, sizes, alternating(sizes, 6))]
    types[-1] = FULL  # as transformers reads every config
    sources = key_sources(fields, types)
    own = _own_sizes(fields, types)
    return [
        _Plan(
            kind,
            own[layer].get("head_dim", sizes.head_dim),
            own[layer].get("num_key_value_heads", sizes.kv_heads),
            sources[layer],
            layer in sources,
        )
        for layer, kind in enumerate(types)
    ]


def key_sources(fields: Fields, types: Sequence[str]) -> list[int | None]:
    """Return for each layer the one whose keys and values it reads: the last of its type to make any."""
    first = len(types) - fields.count("num_kv_shared_layers", 0)
    last = {kind: layer for layer, kind in enumerate(types[: max(first, 0)])}
    if any(kind not in last for kind in types):
        fields.problems.append(
            f"num_kv_shared_layers is {len(types) - first} of {len(types)} layers: that leaves no "
            "layer of each type that makes keys and values"
        )
        return [None] * len(types)
    return [None if layer < first else last[kind] for layer, kind in enumerate(types)]


def _own_sizes(fields: Fields, types: Sequence[str]) -> list[dict[str, int]]:
    """Return by layer the sizes that are not the model's."""
    if fields.has("per_layer_config"):
        tables = fields.table("per_layer_config")
        strange = set(tables) - {*types, *map(str, range(len(types)))}
        if strange:
            fields.problems.append(f"per_layer_config names {sorted(strange)[0]!r}: no such layer")
        return [
            _sizes_in(fields, tables.get(str(layer)) or tables.get(kind))
            for layer, kind in enumerate(types)
        ]
    own = {"head_dim": fields.size("global_head_dim", 512)}
    heads = fields.optional_size("num_global_key_value_heads")
    if heads is not None and fields.flag("attention_k_eq_v", False):
        own["num_key_value_heads"] = heads
    return [own if kind == FULL else {} for kind in types]


def _sizes_in(fields: Fields, table: object) -> dict[str, int]:
    if table is None:
        return {}
    inner = Fields(table if isinstance(table, dict) else {"": table})
    strange = set(inner.names()) - _OWN_SIZES
    inner.problems += [f"{name!r} differs from layer to layer" for name in sorted(strange)]
    found = {name: inner.optional_size(name) for name in _OWN_SIZES}
    fields.problems += [f"per_layer_config: {problem}" for problem in inner.problems]
    return {name: size for name, size in found.items() if size is not None}


def _experts(fields: Fields, sizes: Sizes) -> Experts:
    """Return the experts of the mixture (26B-A4B), which stand beside the MLP."""
    experts = Experts(
        number=fields.size("num_experts"),
        chosen=fields.size("top_k_experts"),
        hidden=sizes.hidden,
        size=fields.size("moe_intermediate_size"),
        router="router.proj",
        projections=(
            ("gate", "experts.{}.gate_proj"),
            ("up", "experts.{}.up_proj"),
            ("down", "experts.{}.down_proj"),
        ),
        normalised=True,
        apart=True,
        router_scale="router.scale",
        expert_scale="router.per_expert_scale",
        fused=(
            Fused(name="experts.gate_up_proj", roles=("gate", "up")),
            Fused(name="experts.down_proj", roles=("down",)),
        ),
        stack="experts",
    )
    return checked_experts(fields, experts, "top_k_experts")


def _beside_experts(hidden: int) -> tuple[Norm, ...]:
    """Return the norms of a block that only mixtures have."""
    name = "post_feedforward_layernorm"
    return (
        Norm(role="router", module="router.norm", size=hidden, plain=True),
        Norm(role="experts_input", module="pre_feedforward_layernorm_2", size=hidden),
        Norm(role="shared_output", module=f"{name}_1", size=hidden),
        Norm(role="experts_output", module=f"{name}_2", size=hidden),
    )


class _Blocks:
    """Makes the blocks of one model."""

    def __init__(self, fields: Fields, sizes: Sizes, per_layer: int) -> None:
        self.fields, self.sizes, self.per_layer = fields, sizes, per_layer
        self.bias = fields.flag("attention_bias", False)
        self.keys_are_values = fields.flag("attention_k_eq_v", False)
        self.double = fields.flag("use_double_wide_mlp", False)
        self.activation = fields.activation("hidden_activation", "gelu_pytorch_tanh")
        self.window = fields.size("sliding_window", 512)
        self.experts = _experts(fields, sizes) if fields.flag("enable_moe_block", False) else None

    def block(self, plan: _Plan) -> BlockShape:
        """Return the block of a layer."""
        wide = 2 if self.double and plan.source is not None else 1
        own = replace(
            self.sizes, head_dim=plan.head_dim, kv_heads=plan.kv_heads, ffn=wide * self.sizes.ffn
        )
        if own.heads % own.kv_heads:
            self.fields.problems.append(
                f"{own.heads} heads cannot share {own.kv_heads} key-value heads evenly"
            )
        return BlockShape(
            heads=own.heads,
            kv_heads=own.kv_heads,
            head_dim=own.head_dim,
            ffn_size=own.ffn,
            activation=self.activation,
            mixer=self._attention(plan, own),
            linears=self._linears(plan, own),
            norms=self._norms(plan, own),
            experts=self.experts,
            per_layer=self.per_layer,
            scalar="layer_scalar",
        )

    def _attention(self, plan: _Plan, own: Sizes) -> Attention:
        fields = self.fields
        if plan.kind == FULL and not fields.table("rope_parameters"):
            fields = fields.with_values(rope_parameters={FULL: _PROPORTIONAL})
        return Attention(
            scale=1.0,
            rotary=rotary_of_type(fields, own, plan.kind, _THETA[plan.kind]),
            window=self.window if plan.kind == SLIDING else None,
            source=plan.source,
            lends=plan.lends,
        )

    def _linears(self, plan: _Plan, own: Sizes) -> tuple[Linear, ...]:
        dropped = {"v"} if self.keys_are_values and plan.kind == FULL else set()
        dropped = dropped if plan.source is None else {"k", "v"}
        attention = split_attention(own, bias=self.bias, output_bias=self.bias)
        kept = tuple(linear for linear in attention if linear.role not in dropped)
        return kept + gated_mlp(own) + self._side(own)

    def _side(self, own: Sizes) -> tuple[Linear, ...]:
        """Return the projections around what a block reads besides the stream."""
        size, hidden = self.per_layer, own.hidden
        if not size:
            return ()
        gate, out = "per_layer_input_gate", "per_layer_projection"
        return (
            Linear(role="per_layer_gate", module=gate, inputs=hidden, outputs=size),
            Linear(role="per_layer_out", module=out, inputs=size, outputs=hidden),
        )

    def _norms(self, plan: _Plan, own: Sizes) -> tuple[Norm, ...]:
        q, k = head_norms(own.head_dim, own.head_dim)
        v = Norm(role="v", module="self_attn.v_norm", size=own.head_dim, plain=True)
        norms = (*sandwich_norms(own), q)
        norms = norms if plan.source is not None else (*norms, k, v)
        norms = norms if self.experts is None else (*norms, *_beside_experts(own.hidden))
        if not self.per_layer:
            return norms
        module = "post_per_layer_input_norm"
        return (*norms, Norm(role="per_layer", module=module, size=own.hidden))
