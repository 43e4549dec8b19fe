"""What llama.cpp calls the tensors of a model, by the roles that they have here."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Final, get_args

from edgetune.mixer import XieluRole
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.shape import MLP_ROLES, BlockShape, Linear, MixerTensor, ModelShape, Norm

LINEARS: Final[Mapping[str, str]] = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "qkv": "attn_qkv",
    "o": "attn_output",
    "q_a": "attn_q_a",
    "q_b": "attn_q_b",
    "kv_a": "attn_kv_a_mqa",
    "kv_b": "attn_kv_b",
    "conv_in": "shortconv.in_proj",
    "conv_out": "shortconv.out_proj",
    "delta_qkv": "attn_qkv",
    "delta_z": "attn_gate",
    "delta_b": "ssm_beta",
    "delta_a": "ssm_alpha",
    "delta_out": "ssm_out",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "gate_up": "ffn_up",
    "down": "ffn_down",
    "per_layer_gate": "inp_gate",
    "per_layer_out": "proj",
}

EXPERTS: Final[Mapping[str, str]] = {
    "gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps",
}  # fmt: skip
"""Matrices of all experts of a block, one after the other."""

FUSED_EXPERTS: Final = "ffn_gate_up_exps"
"""Gate and up of an expert in turn, where a file has them so."""
FUSED_ROLES: Final = ("gate", "up")

ROUTING: Final[Mapping[str, str]] = {
    "router": "ffn_gate_inp.weight",
    "router_scale": "ffn_gate_inp.scale",
    "router_correction": "exp_probs_b.bias",
    "expert_scale": "ffn_down_exps.scale",
    "shared_gate": "ffn_gate_inp_shexp.weight",
}

NORMS: Final[Mapping[str, str]] = {
    "attention_input": "attn_norm",
    "attention_output": "post_attention_norm",
    "mlp_input": "ffn_norm",
    "mlp_output": "post_ffw_norm",
    "shared_output": "post_ffw_norm_1",
    "experts_input": "pre_ffw_norm_2",
    "experts_output": "post_ffw_norm_2",
    "q": "attn_q_norm",
    "k": "attn_k_norm",
    "q_a": "attn_q_a_norm",
    "kv_a": "attn_kv_a_norm",
    "delta": "ssm_norm",
    "per_layer": "post_norm",
}

_OWN_NORMS: Final[Mapping[tuple[str, str], str]] = {
    ("lfm2", "final"): "token_embd_norm",
    ("qwen3_5_text", "mlp_input"): "post_attention_norm",
}
"""By family and role, what is called otherwise there."""

_MIXERS: Final[Mapping[str, str]] = {
    "conv": "shortconv.conv.weight", "scalar": "layer_output_scale.weight",
}  # fmt: skip
_DELTA: Final[Mapping[str, str]] = {
    "conv": "ssm_conv1d.weight", "a_log": "ssm_a", "dt_bias": "ssm_dt.bias",
}  # fmt: skip

XIELU: Final = "xielu."
"""What the keys of an activation's numbers begin with: lists in the metadata, one number a layer."""

TABLE: Final = "per_layer_token_embd.weight"
TABLE_PROJECTION: Final = "per_layer_model_proj.weight"
TABLE_NORM: Final = "per_layer_proj_norm.weight"

EMBEDDING: Final = "token_embd.weight"
HEAD: Final = "output.weight"
POSITIONS: Final = "position_embd.weight"

ROPE_FACTORS: Final = "rope_freqs.weight"
LONG_FACTORS: Final = "rope_factors_long.weight"
SHORT_FACTORS: Final = "rope_factors_short.weight"
BESIDES: Final = frozenset({ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS})
"""Tensors that say how to rotate; the config has what they say."""


def expert_place(layer: int, linear: Linear, tensors: Container[str]) -> tuple[str, int, int]:
    """Return the tensor that has an expert's matrix, its number in there, and how many an expert has.

    A file has gate and up of all experts in a tensor each, or in one for both.
    """
    name, fused = (
        f"blk.{layer}.{EXPERTS[linear.role]}.weight",
        f"blk.{layer}.{FUSED_EXPERTS}.weight",
    )
    number = linear.expert or 0
    if linear.role in FUSED_ROLES and name not in tensors and fused in tensors:
        parts = len(FUSED_ROLES)
        return fused, parts * number + FUSED_ROLES.index(linear.role), parts
    return name, number, 1


def linear_name(block: BlockShape, linear: Linear) -> str:
    """Return what a projection is called in its block.

    An MLP beside experts that read the same has names of its own.
    """
    rule = block.experts
    beside = rule is not None and not rule.apart and linear.role in MLP_ROLES
    return f"{LINEARS[linear.role]}{'_shexp' if beside else ''}"


def norm_name(shape: ModelShape, norm: Norm) -> str:
    """Return what a norm of a block, or one of those at the ends, is called."""
    ends = {"final": "output_norm", "embedding": "token_embd_norm"}
    own = _OWN_NORMS.get((shape.family, norm.role)) or ends.get(norm.role)
    return own or NORMS[norm.role]


def mixer_name(block: BlockShape, tensor: MixerTensor) -> str:
    """Return what a tensor that is neither a projection nor a norm is called in its block."""
    if tensor.role in get_args(XieluRole):
        return f"{XIELU}{tensor.role}"
    names = _DELTA if isinstance(block.mixer, GatedDelta) else _MIXERS
    return names[tensor.role]


def gguf_names(shape: ModelShape) -> dict[str, str]:
    """Return the name in a GGUF file of every tensor of a model."""
    return dict(_outer(shape)) | dict(_blocks(shape))


def _outer(shape: ModelShape) -> Iterator[tuple[str, str]]:
    yield f"{shape.embedding}.weight", EMBEDDING
    if shape.positions is not None:
        yield f"{shape.positions}.weight", POSITIONS
    for norm in (shape.embedding_norm, shape.final_norm):
        if norm is not None:
            yield from _norm(shape, norm, "", "")
    if shape.per_layer is not None:
        own = shape.per_layer
        yield f"{own.table}.weight", TABLE
        yield f"{own.projection}.weight", TABLE_PROJECTION
        yield f"{own.norm.module}.weight", TABLE_NORM
    if not shape.tied:
        yield f"{shape.head}.weight", HEAD
    if shape.head_bias:
        yield f"{shape.head}.bias", "output.bias"


def _blocks(shape: ModelShape) -> Iterator[tuple[str, str]]:
    for layer, block in enumerate(shape.blocks):
        prefix, ours = f"blk.{layer}.", shape.block(layer)
        for linear in block.linears:
            for part in ("weight", "bias") if linear.bias else ("weight",):
                name = linear_name(block, linear)
                yield f"{ours}{linear.module}.{part}", f"{prefix}{name}.{part}"
        for linear in block.expert_linears:
            yield f"{ours}{linear.module}.weight", f"{prefix}{EXPERTS[linear.role]}.weight"
        for tensor in block.routing_tensors:
            if tensor.role in ROUTING:
                yield f"{ours}{tensor.name}", f"{prefix}{ROUTING[tensor.role]}"
        for own in block.mixer_tensors:
            name = mixer_name(block, own)
            yield f"{ours}{own.name}", name if name.startswith(XIELU) else f"{prefix}{name}"
        for norm in block.norms:
            yield from _norm(shape, norm, ours, prefix)


def _norm(shape: ModelShape, norm: Norm, ours: str, prefix: str) -> Iterator[tuple[str, str]]:
    for part in norm.parts:
        yield f"{ours}{norm.module}.{part}", f"{prefix}{norm_name(shape, norm)}.{part}"
