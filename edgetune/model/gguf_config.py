"""Configs of models whose layers are alike, from GGUF metadata.

llama.cpp keeps what its own code needs and leaves out what follows from the architecture, which is
put back here.
"""

from __future__ import annotations

from typing import Final

from edgetune.errors import ModelError
from edgetune.model import gguf_hybrids, gguf_layers
from edgetune.model.gguf_rotary import rotated_share
from edgetune.model.gguf_source import Config, Source, sizes

_LONG: Final = 131_072
"""The context of Gemma 3's sizes that see, of which rotation is stretched."""


def llama(source: Source) -> Config:
    """Return the config of a Llama, or a model like it."""
    config = sizes(source)
    if "head_dim" not in config and source.has("rope.dimension_count"):
        config["head_dim"] = source.whole("rope.dimension_count")
    return config | {
        "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": source.has_tensor("blk.0.ffn_up.bias"),
    }


def granite(source: Source) -> Config:
    """Return the config of a Granite model of the first three generations."""
    if gguf_hybrids.position(source) != "rope":
        raise ModelError(
            f"{source.header.file} says that a {source.architecture} model does not rotate "
            "positions, which is not supported."
        )
    return llama(source) | gguf_hybrids.multipliers(source)


def qwen3(source: Source) -> Config:
    """Return the config of a dense Qwen3, or a model like it."""
    return sizes(source) | {"attention_bias": source.has_tensor("blk.0.attn_q.bias")}


def apertus(source: Source) -> Config:
    """Return the config of an Apertus model, whose plain rotation has to be said."""
    config = qwen3(source)
    plain = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    return {"rope_parameters": plain} | config


def qwen3moe(source: Source) -> Config:
    """Return the config of a Qwen3 mixture."""
    return qwen3(source) | {
        "num_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "moe_intermediate_size": source.whole("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def mixtral(source: Source) -> Config:
    """Return the config of a Mixtral model."""
    config = {k: v for k, v in llama(source).items() if k not in {"attention_bias", "mlp_bias"}}
    return config | {
        "num_local_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
    }


def qwen2moe(source: Source) -> Config:
    """Return the config of a Qwen2 mixture."""
    return sizes(source) | {
        "num_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "moe_intermediate_size": source.whole("expert_feed_forward_length"),
        "shared_expert_intermediate_size": source.whole(
            "expert_shared_feed_forward_length", source.whole("feed_forward_length")
        ),
        "norm_topk_prob": False,
        "qkv_bias": source.has_tensor("blk.0.attn_q.bias"),
    }


def olmoe(source: Source) -> Config:
    """Return the config of an OLMoE model."""
    return sizes(source) | {
        "num_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "norm_topk_prob": False,
    }


def granitemoe(source: Source) -> Config:
    """Return the config of a mixture of Granite 3."""
    return granite(source) | {
        "num_local_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
    }


def cohere(source: Source) -> Config:
    """Return the config of a Command R model."""
    config = sizes(source, norm="layer_norm_eps", layer_norm=True)
    return config | {"logit_scale": source.number("logit_scale")}


def cohere2(source: Source) -> Config:
    """Return the config of a Command R7B model."""
    window = source.whole("attention.sliding_window", 0)
    types = gguf_layers.window_types(source, every=4)
    return cohere(source) | {"sliding_window": window or None, "layer_types": types}


def nemotron(source: Source) -> Config:
    """Return the config of a dense Nemotron model."""
    config = sizes(source, norm="norm_eps", layer_norm=True)
    return config | {
        "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": source.has_tensor("blk.0.ffn_up.bias"),
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
    }


def gemma(source: Source) -> Config:
    """Return the config of a Gemma model of the first generation."""
    return sizes(source) | {"hidden_act": "gelu_pytorch_tanh"}


def gemma2(source: Source) -> Config:
    """Return the config of a Gemma 2 model."""
    config = sizes(source)
    return config | {
        "query_pre_attn_scalar": _query_scalar(source, config, largest=46),
        "sliding_window": source.whole("attention.sliding_window", 4096),
        "layer_types": gguf_layers.window_types(source, every=2),
        "attn_logit_softcapping": source.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": source.number("final_logit_softcapping", 30.0),
    }


def gemma3(source: Source) -> Config:
    """Return the config of a Gemma 3 model, also of a file that Ollama's own converter made."""
    config = sizes(source, eps=1e-6)
    rotary = config.pop("rope_parameters", None)
    context, stretched = config["max_position_embeddings"], source.has("rope.scaling.factor")
    if _by_ollama(source) and context >= _LONG and not stretched:
        rotary = {"rope_type": "linear", "factor": 8.0}  # which these files leave out
    if rotary is not None:
        config["rope_scaling"] = rotary
    capped = source.has("final_logit_softcapping")
    window, types = source.whole("attention.sliding_window", 0), [gguf_layers.FULL] * source.layers
    if window:
        types = gguf_layers.window_types(source, every=6)
    theta, local = (
        source.number(f"rope.{name}.freq_base", default)
        for name, default in (("global", 1e6), ("local", 1e4))
    )
    return config | {
        "rope_theta": source.number("rope.freq_base", theta),
        "rope_local_base_freq": source.number("rope.freq_base_swa", local),
        "query_pre_attn_scalar": _query_scalar(source, config, largest=62),
        "sliding_window": window or None,
        "layer_types": types,
        "final_logit_softcapping": source.number("final_logit_softcapping") if capped else None,
    }


def _by_ollama(source: Source) -> bool:
    """Return whether a Gemma 3 file has the keys of a tower, which llama.cpp's converter leaves out."""
    return source.has("vision.block_count") or source.has("mm.tokens_per_image")


def _query_scalar(source: Source, config: Config, *, largest: int) -> float:
    """Return what queries are divided by the root of: the head's size, but in the largest model.

    That one, known by its number of layers, uses the hidden size over the number of heads.
    """
    if source.has("attention.scale"):
        return source.number("attention.scale") ** -2
    if config["num_hidden_layers"] == largest:
        return float(config["hidden_size"] // config["num_attention_heads"])
    return float(config.get("head_dim", 256))


def phi3(source: Source) -> Config:
    """Return the config of a Phi-3 model."""
    config = sizes(source)
    window = source.whole("attention.sliding_window", 0)
    original = source.whole("rope.scaling.original_context_length", 0)
    return config | {
        "sliding_window": window or None,
        "original_max_position_embeddings": original or config["max_position_embeddings"],
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
    }


def gpt2(source: Source) -> Config:
    """Return the config of a GPT-2 model."""
    return {
        "n_embd": source.whole("embedding_length"),
        "n_inner": source.whole("feed_forward_length"),
        "n_layer": source.whole("block_count"),
        "n_head": source.whole("attention.head_count"),
        "n_positions": source.whole("context_length"),
        "layer_norm_epsilon": source.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def gptneox(source: Source) -> Config:
    """Return the config of a GPT-NeoX model."""
    config = sizes(source, norm="layer_norm_eps", layer_norm=True)
    parallel = source.metadata.flag(f"{source.architecture}.use_parallel_residual", True)
    return config | {
        "rotary_emb_base": config["rope_theta"],
        "rotary_pct": rotated_share(source.header, source.architecture, config),
        "use_parallel_residual": parallel,
        "attention_bias": source.has_tensor("blk.0.attn_qkv.bias"),
        "hidden_act": "gelu",
    }


def starcoder2(source: Source) -> Config:
    """Return the config of a StarCoder2 model."""
    return sizes(source, norm="norm_epsilon", layer_norm=True) | {
        "use_bias": source.has_tensor("blk.0.attn_q.bias")
    }


def stablelm(source: Source) -> Config:
    """Return the config of a StableLM model."""
    config = sizes(source, norm="layer_norm_eps", layer_norm=True)
    parallel = source.metadata.flag(f"{source.architecture}.use_parallel_residual", False)
    return config | {
        "use_qkv_bias": source.has_tensor("blk.0.attn_q.bias"),
        "use_parallel_residual": parallel,
        "qk_layernorm": source.has_tensor("blk.0.attn_q_norm.weight"),
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
    }


def glm4(source: Source) -> Config:
    """Return the config of a GLM-4-0414 model."""
    config = sizes(source)
    return config | {
        "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
    }


def phi(source: Source) -> Config:
    """Return the config of a Phi-1 or Phi-2 model."""
    config = sizes(source, norm="layer_norm_eps", layer_norm=True)
    share = rotated_share(source.header, source.architecture, config)
    return config | {"partial_rotary_factor": share}


def gpt_bigcode(source: Source) -> Config:
    """Return the config of a StarCoder model of the first generation."""
    heads = source.whole("attention.head_count")
    return gpt2(source) | {
        "activation_function": "gelu_pytorch_tanh",
        "multi_query": source.whole("attention.head_count_kv", heads) == 1,
    }


def bloom(source: Source) -> Config:
    """Return the config of a BLOOM model."""
    return {
        "hidden_size": source.whole("embedding_length"),
        "n_layer": source.whole("block_count"),
        "n_head": source.whole("attention.head_count"),
        "seq_length": source.whole("context_length"),
        "layer_norm_epsilon": source.number("attention.layer_norm_epsilon"),
    }


def mpt(source: Source) -> Config:
    """Return the config of an MPT model."""
    clamp = "attention.clamp_kqv"
    return {
        "d_model": source.whole("embedding_length"),
        "n_layers": source.whole("block_count"),
        "n_heads": source.whole("attention.head_count"),
        "max_seq_len": source.whole("context_length"),
        "layer_norm_epsilon": source.number("attention.layer_norm_epsilon"),
        "attn_config": {
            "alibi_bias_max": int(source.number("attention.max_alibi_bias", 8.0)),
            "clip_qkv": source.number(clamp) if source.has(clamp) else None,
        },
    }
