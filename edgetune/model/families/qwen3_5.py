"""Qwen3.5 and later: Gated DeltaNet in three of four blocks, gated attention in the fourth."""

from __future__ import annotations

from dataclasses import replace

from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.model.families.common import (
    Sizes,
    decoder,
    gated_mlp,
    head_norms,
    pre_norms,
    read_rotary,
    read_sizes,
    rms_norm,
    split_attention,
)
from edgetune.model.families.mixtures import checked_experts, expert_count, with_experts
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.shape import (
    MLP_ROLES,
    Attention,
    BlockShape,
    Experts,
    Fused,
    Linear,
    ModelShape,
    Norm,
)

_TYPES = ("full_attention", "linear_attention")
_MODULE = "linear_attn"


def qwen3_5_text(fields: Fields) -> ModelShape:
    """Return the shape of a dense Qwen3.5 model."""
    sizes = read_sizes(fields, kv_heads=4, head_dim=256, context=32768)
    partial = fields.positive("partial_rotary_factor", 0.25)
    rule = Attention(
        scale=sizes.head_dim**-0.5, gated=True, rotary=read_rotary(fields, sizes, partial=partial)
    )
    activation = fields.activation("hidden_act", "silu")
    if activation != "silu":
        fields.problems.append(f"hidden_act is {activation}: only silu is supported")
    if not fields.flag("attn_output_gate", True):
        fields.problems.append(
            "attn_output_gate is false: attention without its gate is not supported"
        )
    gate = fields.raw("output_gate_type")
    if gate not in (None, "swish", "silu"):
        fields.problems.append(f"output_gate_type is {short(gate)}: only swish is supported")
    bias = fields.flag("attention_bias", False)
    query, *others = split_attention(sizes, bias=bias, output_bias=bias)
    whole = decoder(
        fields,
        sizes,
        family="qwen3_5_text",
        linears=(replace(query, outputs=2 * query.outputs), *others, *gated_mlp(sizes)),
        norms=pre_norms(sizes) + head_norms(sizes.head_dim, sizes.head_dim),
        attention=(rule,) * sizes.layers,
        norm=rms_norm(fields, offset=1.0),
        activation=activation,
        tied=fields.flag("tie_word_embeddings", False),
    )
    attending = whole.blocks[0]
    correcting = _correcting(attending, sizes, fields)
    types = _layer_types(fields, sizes)
    return replace(
        whole,
        blocks=tuple(attending if each == _TYPES[0] else correcting for each in types),
    )


def qwen3_5_moe_text(fields: Fields) -> ModelShape:
    """Return the shape of a Qwen3.5 mixture: an MLP for all tokens stands beside the experts.

    Files have all experts in two tensors, or one by one as transformers writes them.
    """
    width = fields.size("shared_expert_intermediate_size", 512)
    shape = qwen3_5_text(
        fields.with_values(intermediate_size=width).with_defaults(
            num_attention_heads=16, num_key_value_heads=2
        )
    )
    experts = Experts(
        number=expert_count(fields, 256),
        chosen=fields.size("num_experts_per_tok", 8),
        hidden=shape.hidden_size,
        size=fields.size("moe_intermediate_size", 512),
        router="mlp.gate",
        projections=(
            ("gate", "mlp.experts.{}.gate_proj"),
            ("up", "mlp.experts.{}.up_proj"),
            ("down", "mlp.experts.{}.down_proj"),
        ),
        normalised=True,
        shared_gate="mlp.shared_expert_gate",
        fused=(
            Fused(name="mlp.experts.gate_up_proj", roles=("gate", "up")),
            Fused(name="mlp.experts.down_proj", roles=("down",)),
        ),
    )
    checked = checked_experts(fields, experts)
    mlp = (x for x in shape.blocks[0].linears if x.role in MLP_ROLES)
    shared = tuple(replace(x, module=x.module.replace("mlp.", "mlp.shared_expert.")) for x in mlp)
    shape = with_experts(shape, lambda _: checked, shared)
    return replace(shape, family="qwen3_5_moe_text")


def _layer_types(fields: Fields, sizes: Sizes) -> list[object]:
    types = fields.items("layer_types", str, sizes.layers)
    if types is None:
        every = fields.size("full_attention_interval", 4)
        types = [_TYPES[bool((layer + 1) % every)] for layer in range(sizes.layers)]
    strange = set(types) - set(_TYPES)
    if strange:
        fields.problems.append(f"layer_types holds unsupported types: {sorted(map(str, strange))}")
    elif "full_attention" not in types:
        fields.problems.append("none of its layers has attention: that is not supported")
    return types


def _correcting(attending: BlockShape, sizes: Sizes, fields: Fields) -> BlockShape:
    """Return the block with Gated DeltaNet in the place of attention."""
    mixer = GatedDelta(
        key_heads=fields.size("linear_num_key_heads", 16),
        value_heads=fields.size("linear_num_value_heads", 32),
        key_dim=fields.size("linear_key_head_dim", 128),
        value_dim=fields.size("linear_value_head_dim", 128),
        taps=fields.size("linear_conv_kernel_dim", 4),
        module=_MODULE,
    )
    if mixer.taps < 2:
        fields.problems.append("linear_conv_kernel_dim is 1: only 2 and more are supported")
    if mixer.value_heads % mixer.key_heads:
        fields.problems.append(
            f"linear_num_value_heads {mixer.value_heads} cannot share "
            f"{mixer.key_heads} key heads evenly"
        )
    kind = rms_norm(fields)
    return replace(
        attending,
        heads=0,
        kv_heads=0,
        head_dim=0,
        mixer=mixer,
        linears=_linears(mixer, sizes.hidden) + gated_mlp(sizes),
        norms=(
            *pre_norms(sizes),
            Norm(role="delta", module=f"{_MODULE}.norm", size=mixer.value_dim, kind=kind),
        ),
    )


def _linears(mixer: GatedDelta, hidden: int) -> tuple[Linear, ...]:
    heads, values, name = mixer.value_heads, mixer.values, f"{_MODULE}.in_proj"
    return (
        Linear(role="delta_qkv", module=f"{name}_qkv", inputs=hidden, outputs=mixer.channels),
        Linear(role="delta_z", module=f"{name}_z", inputs=hidden, outputs=values),
        Linear(role="delta_b", module=f"{name}_b", inputs=hidden, outputs=heads),
        Linear(role="delta_a", module=f"{name}_a", inputs=hidden, outputs=heads),
        Linear(role="delta_out", module=f"{_MODULE}.out_proj", inputs=values, outputs=hidden),
    )
