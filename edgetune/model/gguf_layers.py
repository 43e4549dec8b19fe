"""Configs of models whose layers differ, or whose attention is of another kind, from GGUF metadata."""

from __future__ import annotations

from math import isclose
from statistics import NormalDist
from typing import Any, Final

from edgetune.model.gguf_names import HEAD_BIAS, LAUREL, ROPE_FACTORS, TABLE
from edgetune.model.gguf_rotary import factors, rotated_share
from edgetune.model.gguf_source import Config, Source, sizes
from edgetune.model.rotary import longrope_magnitude

FULL, SLIDING = "full_attention", "sliding_attention"
_STILL: Final = 1e6
"""A frequency that is divided by more than this does not turn."""
_OWN_KEYS: Final = 20
"""Layers of Gemma 3n that make keys and values, in every model that there is."""
_SPARSE_LAYERS: Final = 10
_SPARSITY: Final = 0.95
_DIGITS: Final = 6
"""Of a share whose deviations are a float32."""
_PHIMOE_MAGNITUDE: Final = 1.243163121016122
"""By it scores of Phi-3.5-MoE grow, of documents of any length, as its publisher says."""
_GLM_OF_OLLAMA: Final = "glm4moelite"
"""Has the names of both sizes the other way round."""
_SIGMOID: Final = 2
"""How llama.cpp calls weights of experts that are sigmoids."""


def lfm2(source: Source) -> Config:
    """Return the config of an LFM2 model: a layer without heads of keys is a convolution.

    Some files of Ollama's own converter say another size of the MLP than theirs has.
    """
    kv_heads, gate = source.each("attention.head_count_kv"), "blk.0.ffn_gate.weight"
    wide = source.header.tensors[gate].shape[0] if source.has_tensor(gate) else None
    return sizes(source, norm="norm_eps", ffn=wide, kv_heads=max(kv_heads)) | {
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": source.whole("shortconv.l_cache"),
        "layer_types": [FULL if heads else "conv" for heads in kv_heads],
    }


def qwen3_5(source: Source, *, ffn: int | None = None) -> Config:
    """Return the config of a dense Qwen3.5 model; layers without attention may have 0 heads of keys."""
    key = "attention.head_count_kv"
    kv_heads = max(source.each(key)) if source.lists(key) else None
    config, heads = sizes(source, ffn=ffn, kv_heads=kv_heads), source.whole("ssm.time_step_rank")
    return config | {
        "full_attention_interval": source.whole("full_attention_interval"),
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
        "linear_conv_kernel_dim": source.whole("ssm.conv_kernel"),
        "linear_num_key_heads": source.whole("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_key_head_dim": source.whole("ssm.state_size"),
        "linear_value_head_dim": source.whole("ssm.inner_size") // max(heads, 1),
    }


def olmo3(source: Source) -> Config:
    """Return the config of an OLMo 3 model, of which only layers that see all are stretched."""
    config = sizes(source)
    theta = config["rope_theta"]
    scaled = config.pop("rope_parameters", {"rope_type": "default", "rope_theta": theta})
    types = window_types(source, every=4)
    return config | {
        "sliding_window": source.whole("attention.sliding_window"),
        "layer_types": types,
        "rope_parameters": {
            FULL: scaled,
            SLIDING: {
                "rope_type": "default",
                "rope_theta": source.number("rope.freq_base_swa", theta),
            },
        },
    }


def exaone4(source: Source) -> Config:
    """Return the config of an EXAONE 4 model; the small ones have no windows."""
    window = source.whole("attention.sliding_window", 0)
    config = sizes(source) | {"sliding_window": window or None}
    return config | ({"layer_types": window_types(source, every=4)} if window else {})


def gemma4(source: Source) -> Config:
    """Return the config of a Gemma 4 model, also of a mixture."""
    wide, kv_heads = source.each("feed_forward_length"), source.each("attention.head_count_kv")
    windowed = source.each("attention.sliding_window_pattern", bool)
    own = [heads for heads, seen in zip(kv_heads, windowed, strict=True) if seen]
    others = [heads for heads, seen in zip(kv_heads, windowed, strict=True) if not seen]
    config = sizes(source, ffn=min(wide), kv_heads=own[0] if own else kv_heads[0])
    config.pop("rope_parameters", None)
    capped = source.has("final_logit_softcapping")
    return config | {
        "head_dim": source.whole("attention.key_length_swa"),
        "global_head_dim": source.whole("attention.key_length"),
        "num_global_key_value_heads": others[0] if others else None,
        "attention_k_eq_v": _keys_are_values(source, windowed),
        "num_kv_shared_layers": source.whole("attention.shared_kv_layers", 0),
        "use_double_wide_mlp": max(wide) > min(wide),
        "layer_types": [SLIDING if seen else FULL for seen in windowed],
        "sliding_window": source.whole("attention.sliding_window"),
        "final_logit_softcapping": source.number("final_logit_softcapping") if capped else None,
        "rope_parameters": _gemma4_rotation(source),
        **_gemma4_tables(source),
    }


def gemma3n(source: Source) -> Config:
    """Return the config of a Gemma 3n model, also of a file that Ollama's own converter made.

    What a file does not say is as llama.cpp computes it.
    """
    wide, first = source.each("feed_forward_length"), source.header.tensors.get(LAUREL)
    table = source.header.tensors.get(TABLE)
    config = {"head_dim": source.whole("head_dim", 256)} | sizes(source, ffn=max(wide, default=1))
    rotary = config.pop("rope_parameters", None)
    local = source.number("rope.freq_base_local", 10_000.0)
    return config | {
        "intermediate_size": wide,
        "rope_theta": source.number("rope.freq_base", 1e6),
        "rope_local_base_freq": source.number("rope.freq_base_swa", local),
        **({} if rotary is None else {"rope_scaling": rotary}),
        "sliding_window": source.whole("attention.sliding_window"),
        "layer_types": window_types(source, every=5),
        "num_kv_shared_layers": source.whole(
            "attention.shared_kv_layers", max(0, source.layers - _OWN_KEYS)
        ),
        "activation_sparsity_pattern": _shares(source),
        "altup_num_inputs": source.whole("altup.num_inputs", 4),
        "altup_active_idx": source.whole("altup.active_idx", 0),
        "laurel_rank": first.shape[0] if first is not None and first.shape else 64,
        "hidden_size_per_layer_input": source.whole("embedding_length_per_layer_input", 256),
        "vocab_size_per_layer_input": source.vocabulary if table is None else table.shape[0],
        "final_logit_softcapping": source.number("final_logit_softcapping", 30.0),
    }


def _shares(source: Source) -> list[float]:
    """Return which share each layer's gate leaves out: files have it in deviations."""
    key = "activation_sparsity_scale"
    if not source.lists(key):
        return [_SPARSITY if layer < _SPARSE_LAYERS else 0.0 for layer in range(source.layers)]
    normal = NormalDist()
    return [round(normal.cdf(bound), _DIGITS) for bound in source.each(key, float)]


def _gemma4_tables(source: Source) -> Config:
    """Return what a config says of per-layer embeddings and of experts."""
    table, own = source.header.tensors.get(TABLE), "embedding_length_per_layer_input"
    found: Config = {"hidden_size_per_layer_input": source.whole(own, 0)}
    if table is not None:
        found["vocab_size_per_layer_input"] = table.shape[0]
    if source.whole("expert_count", 0):
        found |= {
            "enable_moe_block": True,
            "num_experts": source.whole("expert_count"),
            "top_k_experts": source.whole("expert_used_count"),
            "moe_intermediate_size": source.whole("expert_feed_forward_length"),
        }
    return found


def _keys_are_values(source: Source, windowed: list[Any]) -> bool:
    """Return whether layers that see all make keys alone, as values too."""
    first = next((layer for layer, seen in enumerate(windowed) if not seen), None)
    if first is None or not source.has_tensor(f"blk.{first}.attn_k.weight"):
        return False
    return not source.has_tensor(f"blk.{first}.attn_v.weight")


def _gemma4_rotation(source: Source) -> dict[str, Any]:
    full: dict[str, Any] = {"rope_type": "default", "rope_theta": source.number("rope.freq_base")}
    if source.has_tensor(ROPE_FACTORS):
        found = factors(source.header, ROPE_FACTORS)
        turning = sum(factor < _STILL for factor in found)
        full |= {"rope_type": "proportional", "partial_rotary_factor": turning / len(found)}
    theta = source.number("rope.freq_base_swa", 10_000.0)
    return {FULL: full, SLIDING: {"rope_type": "default", "rope_theta": theta}}


def phimoe(source: Source) -> Config:
    """Return the config of a PhiMoE model.

    What llama.cpp's script says scores grow by is what the contexts make of it; the model has a
    number of its own, which its files leave out.
    """
    config, window = sizes(source), source.whole("attention.sliding_window", 0)
    table = config.get("rope_parameters")
    if table is not None and table["rope_type"] == "longrope":
        stated = table.pop("attention_factor", None)
        usual = longrope_magnitude(table["factor"], table["original_max_position_embeddings"])
        computed = stated is None or isclose(stated, usual, rel_tol=1e-5)
        grown = _PHIMOE_MAGNITUDE if computed else stated
        table |= {"short_mscale": grown, "long_mscale": grown}
    return config | {
        "num_local_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "sliding_window": window or None,
        "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
        "lm_head_bias": source.has_tensor(HEAD_BIAS),
    }


def deepseek_v2(source: Source) -> Config:
    """Return the config of a model whose keys and values are made of latents.

    Newer files say the sizes of attention to latents, and those of keys and values apart.
    """
    rotated = source.whole("rope.dimension_count")
    config = sizes(source, kv_heads=source.whole("attention.head_count"))
    key_dim = config.pop("head_dim")
    newer = source.has("attention.key_length_mla") and source.architecture != _GLM_OF_OLLAMA
    if newer:
        key_dim = source.whole("attention.key_length_mla")
    width, rank = source.whole("expert_feed_forward_length"), "attention.q_lora_rank"
    config |= {
        "kv_lora_rank": source.whole("attention.kv_lora_rank"),
        "q_lora_rank": source.whole(rank) if source.has(rank) else None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key_dim - rotated,
        "v_head_dim": source.whole(f"attention.value_length{'_mla' * newer}"),
        "first_k_dense_replace": source.whole("leading_dense_block_count", 0),
        "n_routed_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "n_shared_experts": source.whole("expert_shared_count"),
        "moe_intermediate_size": width,
        "routed_scaling_factor": source.number("expert_weights_scale", 1.0),
        "n_group": source.whole("expert_group_count", 1),
        "topk_group": source.whole("expert_group_used_count", 1),
        "num_nextn_predict_layers": 0,
    }
    if "rope_parameters" in config:
        grown = source.number("rope.scaling.yarn_log_multiplier", 0.0)
        table = {"attention_factor": 1.0, "mscale_all_dim": 10 * grown}
        config["rope_parameters"] = config["rope_parameters"] | table
    return config


def deepseek_v3(source: Source) -> Config:
    """Return the config of a model whose weights of experts are sigmoids."""
    normalised = source.metadata.flag(f"{source.architecture}.expert_weights_norm", False)
    return deepseek_v2(source) | {"norm_topk_prob": normalised}


def has_sigmoids(source: Source) -> bool:
    """Return whether weights of experts are sigmoids."""
    return source.whole("expert_gating_func", 1) == _SIGMOID


def window_types(source: Source, *, every: int) -> list[str]:
    """Return the types of layers, of which all but every so manieth see a window by default.

    A file says it of each layer, or says another number than the default.
    """
    key = "attention.sliding_window_pattern"
    if source.lists(key):
        windowed = source.each(key, bool)
    else:
        every = source.whole(key, every)
        windowed = [not every or (layer + 1) % every != 0 for layer in range(source.layers)]
    return [SLIDING if seen else FULL for seen in windowed]
