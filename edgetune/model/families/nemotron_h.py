"""Nemotron-H: blocks of one half each: Mamba-2, attention without rotation, an MLP, or experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Final

from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.model.families.common import (
    MOST_LAYERS,
    Sizes,
    decoder,
    plain_mlp,
    read_sizes,
    split_attention,
)
from edgetune.model.families.mixtures import checked_experts, checked_groups, corrected
from edgetune.model.families.scanning import checked_mixer, scanning
from edgetune.network.mixers.state_space import StateSpace
from edgetune.shape import (
    ATTENTION_ROLES,
    MLP_ROLES,
    Attention,
    BlockShape,
    Experts,
    Linear,
    ModelShape,
    Norm,
    NormKind,
)

_KINDS: Final = {
    "M": "scan", "mamba": "scan", "linear_attention": "scan",
    "*": "attention", "attention": "attention", "full_attention": "attention",
    "-": "mlp", "mlp": "mlp",
    "E": "experts", "moe": "experts",
}  # fmt: skip
"""Kinds of blocks by their letters in a pattern, and by their names in a list."""
_MODULE: Final = "mixer"
_EARLIER: Final = {
    "mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_conv_bias": "use_conv_bias",
    "mamba_dt_min": "time_step_min",
}  # fmt: skip
"""Names that fields of Mamba-2 had, which transformers prefers where it finds them."""


def nemotron_h(fields: Fields) -> ModelShape:
    """Return the shape of a Nemotron-H model; its head is always a matrix of its own."""
    kinds = _kinds(fields)
    earlier = {now: fields.raw(name) for name, now in _EARLIER.items() if fields.has(name)}
    fields = fields.with_values(**earlier).with_defaults(
        intermediate_size=21504, num_attention_heads=32
    )
    sizes = read_sizes(
        fields.with_values(num_hidden_layers=len(kinds)), kv_heads=8, head_dim=128, context=4096
    )
    fields.refuse("sliding_window", "layers with windows are not supported")
    bias = fields.flag("mlp_bias", False)
    linears = (*split_attention(sizes, bias=False, output_bias=False), *plain_mlp(sizes, bias=bias))
    norm = NormKind(kind="rms", eps=fields.positive("layer_norm_epsilon", 1e-5))
    shape = decoder(
        fields,
        sizes,
        family="nemotron_h",
        linears=_inside(_MODULE, linears),
        norms=(Norm(role="attention_input", module="norm", size=sizes.hidden),),
        attention=(Attention(scale=sizes.head_dim**-0.5),) * sizes.layers,
        norm=norm,
        activation=fields.activation("mlp_hidden_act", "relu2"),
        tied=False,
    )
    blocks = _blocks(fields, shape)
    if "experts" in kinds:
        blocks["experts"] = _mixture(fields, sizes, blocks["mlp"], bias=bias)
    return replace(
        shape,
        blocks=tuple(blocks[kind] for kind in kinds),
        final_norm=Norm(role="final", module="model.norm_f", size=sizes.hidden),
        embedding="model.embeddings",
    )


def _kinds(fields: Fields) -> list[str]:
    """Return the kind of each block: of a list of names, or of a pattern of letters."""
    listed = fields.raw("layers_block_type") or fields.raw("layer_types")
    value = listed or fields.raw("hybrid_override_pattern")
    names = list(value) if isinstance(value, str | list) and len(value) <= MOST_LAYERS else []
    if not names or not all(isinstance(x, str) and x in _KINDS for x in names):
        fields.problems.append(
            "layers_block_type or hybrid_override_pattern must say of each layer whether it is Mamba "
            f"(M), attention (*), an MLP (-) or a mixture of experts (E); found {short(value)}"
        )
        return ["attention"]
    kinds = [_KINDS[x] for x in names]
    if "attention" not in kinds:
        fields.problems.append("none of its layers has attention: that is not supported")
    return kinds


def _blocks(fields: Fields, shape: ModelShape) -> dict[str, BlockShape]:
    """Return the kinds of blocks without experts, of one that has attention and an MLP."""
    whole, bias = shape.blocks[0], fields.flag("use_bias", False)
    attending = replace(
        whole, ffn_size=0, linears=tuple(x for x in whole.linears if x.role in ATTENTION_ROLES)
    )
    scans = scanning(
        attending, _mixer(fields), shape.hidden_size, shape.norm, bias=bias, output_bias=bias
    )
    mlp = replace(
        whole,
        heads=0,
        kv_heads=0,
        head_dim=0,
        mixer=None,
        linears=tuple(x for x in whole.linears if x.role in MLP_ROLES),
        norms=tuple(replace(x, role="mlp_input") for x in whole.norms),
    )
    # PEFT refuses adapters of what scans project at last
    linears = tuple(replace(x, grouped=x.role != "scan_out") for x in scans.linears)
    return {"attention": attending, "scan": replace(scans, linears=linears), "mlp": mlp}


def _mixture(fields: Fields, sizes: Sizes, mlp: BlockShape, *, bias: bool) -> BlockShape:
    """Return the block with experts (Nemotron 3), of that with an MLP: one is for all tokens."""
    width = fields.size("moe_shared_expert_intermediate_size", 7688)
    shared = plain_mlp(replace(sizes, ffn=width), bias=bias)
    return replace(
        mlp,
        ffn_size=width,
        linears=_inside(f"{_MODULE}.shared_experts", shared),
        experts=_experts(fields, sizes.hidden),
    )


def _experts(fields: Fields, hidden: int) -> Experts:
    """Return experts without a gate, chosen as DeepSeek-V3's are."""
    fields.refuse("moe_latent_size", "experts that read less than the stream are not supported")
    if fields.raw("n_shared_experts") not in (None, 1):
        fields.problems.append("n_shared_experts is not 1: transformers has one in any case")
    experts = Experts(
        number=fields.size("n_routed_experts", 8),
        chosen=fields.size("num_experts_per_tok", 2),
        hidden=hidden,
        size=fields.size("moe_intermediate_size", 7688),
        router=f"{_MODULE}.gate",
        projections=(
            ("up", f"{_MODULE}.experts.{{}}.up_proj"),
            ("down", f"{_MODULE}.experts.{{}}.down_proj"),
        ),
        normalised=True,
        factor=fields.positive("routed_scaling_factor", 1.0),
        groups=fields.size("n_group", 1),
        chosen_groups=fields.size("topk_group", 1),
        stack=f"{_MODULE}.experts",
    )
    return corrected(fields, checked_groups(fields, checked_experts(fields, experts)))


def _inside(module: str, linears: Iterable[Linear]) -> tuple[Linear, ...]:
    """Return projections that are inside another module."""
    return tuple(replace(x, module=f"{module}.{x.module.split('.')[-1]}") for x in linears)


def _mixer(fields: Fields) -> StateSpace:
    activation = fields.activation("mamba_hidden_act", "silu")
    if activation != "silu":
        fields.problems.append(f"mamba_hidden_act is {activation}: only silu is supported")
    mixer = StateSpace(
        heads=fields.size("mamba_num_heads", 128),
        groups=fields.size("n_groups", 8),
        value_dim=fields.size("mamba_head_dim", 64),
        key_dim=fields.size("ssm_state_size", 128),
        taps=fields.size("conv_kernel", 4),
        module=_MODULE,
        bias=fields.flag("use_conv_bias", True),
        least_step=fields.positive("time_step_min", 0.001),
        most_step=inf,
    )
    return checked_mixer(fields, mixer)
