"""What llama.cpp calls the tensors of a model, by the roles that they have here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, get_args

from edgetune.mixer import XieluRole
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
    "scan_in": "ssm_in",
    "scan_out": "ssm_out",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "gate_up": "ffn_up",
    "down": "ffn_down",
    "per_layer_gate": "inp_gate",
    "per_layer_out": "proj",
    "laurel_left": "laurel_l",
    "laurel_right": "laurel_r",
}

EXPERTS: Final[Mapping[str, str]] = {
    "gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps",
}  # fmt: skip
"""Matrices of all experts of a block, one after the other."""

FUSED_EXPERTS: Final = "ffn_gate_up_exps"
"""Gate and up of an expert in turn, where a file has them so."""
GATE_AND_UP: Final = ("gate", "up")
SPLIT_LATENTS: Final = ("attn_k_b", "attn_v_b")
"""What makes keys and what makes values of latents, where a file has them apart."""
SPLIT: Final = frozenset({"granitemoehybrid"})
"""Families whose gate and up are one projection, and two tensors in a file."""

ROUTING: Final[Mapping[str, str]] = {
    "router": "ffn_gate_inp.weight",
    "router_bias": "ffn_gate_inp.bias",
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
    "scan": "ssm_norm",
    "per_layer": "post_norm",
    "altup": "altup_router_norm",
    "laurel": "laurel_post_norm",
}

_OWN_NORMS: Final[Mapping[tuple[str, str], str]] = {
    ("lfm2", "final"): "token_embd_norm",
    ("qwen3_5_text", "mlp_input"): "post_attention_norm",
    ("qwen3_5_moe_text", "mlp_input"): "post_attention_norm",
    ("gpt_oss", "mlp_input"): "post_attention_norm",
    ("nemotron_h", "mlp_input"): "attn_norm",
}
"""By family and role, what is called otherwise there."""
_BARE: Final = frozenset({("falcon_h1", "mlp_input")})
"""Norms whose name has no ``.weight`` behind it."""

_MIXERS: Final[Mapping[str, str]] = {
    "scalar": "layer_output_scale.weight", "sinks": "attn_sinks.weight",
    "altup_router": "altup_router.weight", "altup_prediction": "altup_predict_coef.weight",
    "altup_correction": "altup_correct_coef.weight", "altup_scale": "altup_correct_scale.weight",
}  # fmt: skip
_RECURRENT: Final[Mapping[str, Mapping[str, str]]] = {
    "short_convolution": {"conv": "shortconv.conv.weight"},
    "gated_delta": {"conv": "ssm_conv1d.weight", "a_log": "ssm_a", "dt_bias": "ssm_dt.bias"},
    "state_space": {
        "conv": "ssm_conv1d.weight", "conv_bias": "ssm_conv1d.bias", "a_log": "ssm_a",
        "dt_bias": "ssm_dt.bias", "skip": "ssm_d"},
}  # fmt: skip
"""By kind of mixer and role."""

XIELU: Final = "xielu."
"""What the keys of an activation's numbers begin with: lists in the metadata, one number a layer."""

TABLE: Final = "per_layer_token_embd.weight"
TABLE_PROJECTION: Final = "per_layer_model_proj.weight"
TABLE_NORM: Final = "per_layer_proj_norm.weight"
STREAM_ENTRIES: Final = "altup_proj.weight"
STREAM_EXITS: Final = "altup_unembd_proj.weight"
"""The projections of all streams but the first, one after the other."""
LAUREL: Final = "blk.0.laurel_l.weight"

EMBEDDING: Final = "token_embd.weight"
HEAD: Final = "output.weight"
HEAD_BIAS: Final = "output.bias"
POSITIONS: Final = "position_embd.weight"

ROPE_FACTORS: Final = "rope_freqs.weight"
LONG_FACTORS: Final = "rope_factors_long.weight"
SHORT_FACTORS: Final = "rope_factors_short.weight"
BESIDES: Final = frozenset({ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS})
"""Tensors that say how to rotate; the config has what they say."""


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


def norm_tensor(shape: ModelShape, norm: Norm, part: str) -> str:
    """Return what the weight or the bias of a norm is called, in its block or at the ends."""
    name = norm_name(shape, norm)
    return name if (shape.family, norm.role) in _BARE else f"{name}.{part}"


def mixer_name(block: BlockShape, tensor: MixerTensor) -> str:
    """Return what a tensor that is neither a projection nor a norm is called in its block."""
    if tensor.role in get_args(XieluRole):
        return f"{XIELU}{tensor.role}"
    own = {} if block.recurrent is None else _RECURRENT[block.recurrent.kind]
    return own.get(tensor.role) or _MIXERS[tensor.role]


def gguf_names(shape: ModelShape) -> dict[str, str]:
    """Return the name in a GGUF file of every tensor of a model but those of experts."""
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
        yield f"{shape.head}.bias", HEAD_BIAS


def _blocks(shape: ModelShape) -> Iterator[tuple[str, str]]:
    for layer, block in enumerate(shape.blocks):
        prefix, ours = f"blk.{layer}.", shape.block(layer)
        for linear in block.linears:
            for part in ("weight", "bias") if linear.bias else ("weight",):
                name = linear_name(block, linear)
                yield f"{ours}{linear.module}.{part}", f"{prefix}{name}.{part}"
        for tensor in block.routing_tensors:
            yield f"{ours}{tensor.name}", f"{prefix}{ROUTING[tensor.role]}"
        for own in block.mixer_tensors:
            name = mixer_name(block, own)
            yield f"{ours}{own.name}", name if name.startswith(XIELU) else f"{prefix}{name}"
        for norm in block.norms:
            yield from _norm(shape, norm, ours, prefix)


def _norm(shape: ModelShape, norm: Norm, ours: str, prefix: str) -> Iterator[tuple[str, str]]:
    for part in norm.parts:
        yield f"{ours}{norm.module}.{part}", f"{prefix}{norm_tensor(shape, norm, part)}"
