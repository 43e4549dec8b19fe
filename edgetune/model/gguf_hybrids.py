"""Configs of models with Mamba-2, Gated DeltaNet or attention sinks, from GGUF metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgetune.errors import ModelError
from edgetune.model.gguf_layers import qwen3_5, window_types
from edgetune.model.gguf_source import Config, Source, sizes

_PLAIN_ROTATION: Final = {"rope_type": "default"}


def multipliers(source: Source) -> Config:
    """Return Granite's; llama.cpp scales scores by the size of a head where a file does not say."""
    return {
        "attention_multiplier": source.number("attention.scale", 0.0) or _head(source) ** -0.5,
        "embedding_multiplier": source.number("embedding_scale", 1.0),
        "residual_multiplier": source.number("residual_scale", 1.0),
        "logits_scaling": source.number("logit_scale", 1.0),
    }


def position(source: Source) -> str:
    """Return how a Granite model knows positions: by rotation (``rope``) or not at all (``nope``).

    Raises:
        ModelError: if a part of each head rotates, as in Bamba.
    """
    if not source.metadata.flag(f"{source.architecture}.rope.scaling.finetuned", True):
        return "nope"
    head = _head(source)
    turning = source.whole("rope.dimension_count", head)
    if turning != head:
        raise ModelError(
            f"{source.header.file} rotates {turning} of the {head} channels of a head, which no "
            "Granite does. Bamba does, whose files llama.cpp calls granitehybrid as Granite 4's: it "
            "is not supported."
        )
    return "rope"


def granitehybrid(source: Source) -> Config:
    """Return the config of a Granite 4 model with Mamba-2: in layers without heads of keys."""
    kv_heads = source.each("attention.head_count_kv")
    config = sizes(source, kv_heads=max(kv_heads))
    experts, width = source.whole("expert_count", 0), config["intermediate_size"]
    if experts:
        width = source.whole("expert_shared_feed_forward_length")
        config["num_experts_per_tok"] = source.whole("expert_used_count")
    return (
        config
        | multipliers(source)
        | _mamba(source, _first(kv_heads, 0))
        | {
            "num_local_experts": experts,
            "shared_intermediate_size": width,
            "layer_types": ["attention" if heads else "mamba" for heads in kv_heads],
            "position_embedding_type": position(source),
            "attention_bias": source.has_tensor(f"blk.{_first_not(kv_heads, 0)}.attn_q.bias"),
            "mamba_expand": source.whole("ssm.inner_size") // max(config["hidden_size"], 1),
        }
    )


def granite_shared(source: Source) -> Config:
    """Return the config of a Granite mixture without Mamba-2, with an MLP for all beside experts."""
    return (
        sizes(source)
        | multipliers(source)
        | {
            "num_local_experts": source.whole("expert_count"),
            "num_experts_per_tok": source.whole("expert_used_count"),
            "shared_intermediate_size": source.whole("expert_shared_feed_forward_length"),
            "layer_types": ["attention"] * source.layers,
            "position_embedding_type": position(source),
            "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
        }
    )


def has_shared(source: Source) -> bool:
    """Return whether an MLP that all tokens go through stands beside experts."""
    return source.whole("expert_shared_feed_forward_length", 0) > 0


def falcon_h1(source: Source) -> Config:
    """Return the config of a Falcon-H1 model, whose multipliers are in its weights."""
    return (
        sizes(source)
        | _mamba(source, 0)
        | {
            "mamba_d_ssm": source.whole("ssm.inner_size"),
            "mamba_rms_norm": source.has_tensor("blk.0.ssm_norm.weight"),
            "mamba_norm_before_gate": False,
            "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
            "mlp_bias": source.has_tensor("blk.0.ffn_up.bias"),
        }
    )


def nemotron_h(source: Source) -> Config:
    """Return the config of a Nemotron-H model: a layer has heads of keys, or an MLP, or Mamba-2.

    Where there are experts, they are in the place of all MLPs.
    """
    kv_heads, wide = source.each("attention.head_count_kv"), source.each("feed_forward_length")
    experts = source.whole("expert_count", 0)
    feeds = "moe" if experts else "mlp"
    kinds = [
        "attention" if heads else feeds if width else "mamba"
        for heads, width in zip(kv_heads, wide, strict=True)
    ]
    config = sizes(source, norm="layer_norm_epsilon", ffn=max(wide), kv_heads=max(kv_heads))
    config |= _nemotron_experts(source, experts) if experts else {}
    first = _first(kinds, "mamba")
    return config | {
        "layers_block_type": kinds,
        "mlp_bias": source.has_tensor(f"blk.{_first(kinds, 'mlp')}.ffn_up.bias"),
        "mamba_num_heads": source.whole("ssm.time_step_rank"),
        "mamba_head_dim": _head_dim(source),
        "n_groups": source.whole("ssm.group_count"),
        "ssm_state_size": source.whole("ssm.state_size"),
        "conv_kernel": source.whole("ssm.conv_kernel"),
        "use_conv_bias": source.has_tensor(f"blk.{first}.ssm_conv1d.bias"),
    }


def _nemotron_experts(source: Source, experts: int) -> Config:
    """Return what the config of a Nemotron 3 model says of its experts."""
    normalised = source.metadata.flag(f"{source.architecture}.expert_weights_norm", False)
    return {
        "n_routed_experts": experts,
        "num_experts_per_tok": source.whole("expert_used_count"),
        "n_shared_experts": source.whole("expert_shared_count", 1),
        "moe_intermediate_size": source.whole("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": source.whole("expert_shared_feed_forward_length"),
        "moe_latent_size": source.whole("moe_latent_size", 0) or None,
        "routed_scaling_factor": source.number("expert_weights_scale", 0.0) or 1.0,
        "norm_topk_prob": normalised,
        "n_group": source.whole("expert_group_count", 1),
        "topk_group": source.whole("expert_group_used_count", 1),
    }


def qwen3_5_moe(source: Source) -> Config:
    """Return the config of a Qwen3.5 mixture."""
    shared = source.whole("expert_shared_feed_forward_length")
    return qwen3_5(source, ffn=shared) | {
        "num_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "moe_intermediate_size": source.whole("expert_feed_forward_length"),
        "shared_expert_intermediate_size": shared,
    }


def gpt_oss(source: Source) -> Config:
    """Return the config of a gpt-oss model, also of a file that Ollama's own converter made."""
    gates = source.header.tensors.get("blk.0.ffn_gate_exps.weight")
    wide = gates.shape[1] if gates is not None and len(gates.shape) == 3 else None
    config = sizes(source, ffn=source.whole("expert_feed_forward_length", wide))
    rotation = config.get("rope_parameters", _PLAIN_ROTATION | {"rope_theta": config["rope_theta"]})
    if not source.has("rope.scaling.type") and source.has("rope.scaling.factor"):
        rotation |= {"rope_type": "yarn"}
        rotation["original_max_position_embeddings"] = source.whole(
            "rope.scaling.original_context_length"
        )
    if rotation["rope_type"] == "yarn":
        rotation["truncate"] = False  # as the models were trained
    return config | {
        "rope_parameters": rotation,
        "num_local_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "sliding_window": source.whole("attention.sliding_window"),
        "layer_types": window_types(source, every=2),
        "attention_bias": source.has_tensor("blk.0.attn_output.bias"),
    }


def _head(source: Source) -> int:
    """Return the channels of a head; what a damaged file says of them is refused with the sizes."""
    heads = max(1, source.whole("attention.head_count"))
    return max(1, source.whole("attention.key_length", source.whole("embedding_length") // heads))


def _mamba(source: Source, layer: int) -> Config:
    """Return what a config says of Mamba-2, of which a layer is one."""
    return {
        "mamba_n_heads": source.whole("ssm.time_step_rank"),
        "mamba_n_groups": source.whole("ssm.group_count"),
        "mamba_d_head": _head_dim(source),
        "mamba_d_state": source.whole("ssm.state_size"),
        "mamba_d_conv": source.whole("ssm.conv_kernel"),
        "mamba_conv_bias": source.has_tensor(f"blk.{layer}.ssm_conv1d.bias"),
    }


def _head_dim(source: Source) -> int:
    return source.whole("ssm.inner_size") // max(source.whole("ssm.time_step_rank"), 1)


def _first(items: Sequence[object], wanted: object) -> int:
    """Return where something comes first; 0 if it does not."""
    return items.index(wanted) if wanted in items else 0


def _first_not(items: Sequence[object], unwanted: object) -> int:
    """Return where something else comes first; 0 if nothing does."""
    return next((place for place, item in enumerate(items) if item != unwanted), 0)
