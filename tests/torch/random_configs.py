"""Random configs of every family, with the sizes and the switches that it has."""

from __future__ import annotations

import random
from collections.abc import Callable

from config_switches import Config, common, sometimes, with_head_size

from edgetune.model.families.wrappers import INSIDE


def random_config(family: str, seed: int) -> Config:
    draw = random.Random(f"{family} {seed}")
    make: Callable[[random.Random], Config] = {
        "gpt2": _gpt2,
        "gpt_neox": _gpt_neox,
        "gpt_bigcode": _gpt_bigcode,
        "gptj": _gptj,
        "gpt_neo": _gpt_neo,
        "bloom": _bloom,
        "mpt": _mpt,
        "opt": _opt,
        "falcon": _falcon,
        "falcon_h1": _falcon_h1,
        "granitemoehybrid": _granite4,
        "nemotron_h": _nemotron_h,
        "helium": _helium,
        "deepseek_v2": _deepseek_v2,
        "deepseek_v3": _deepseek_v3,
        "glm4_moe_lite": _glm4_moe_lite,
        "lfm2": _lfm2,
        "hunyuan_v1_dense": with_head_size("hunyuan_v1_dense"),
        "ministral": with_head_size("ministral"),
        "qwen3_5_moe_text": _qwen3_5_moe,
        "qwen3_5_text": _qwen3_5,
        "gemma3n_text": _gemma3n,
        "gemma4_text": _gemma4,
        "gemma4_unified_text": _gemma4_unified,
    }.get(family, lambda draw: common(family, draw))
    if family in INSIDE:
        inner = draw.choice(INSIDE[family])
        return {"model_type": family, "text_config": random_config(inner, seed)}
    return {"model_type": family, **make(draw)}


def _granite4(draw: random.Random) -> Config:
    config = common("granite", draw)
    layers, kinds = config["num_hidden_layers"], ["attention", "full_attention", "mamba"]
    types = [draw.choice([*kinds, "linear_attention"]) for _ in range(layers)]
    types[draw.randrange(layers)] = draw.choice(kinds[:2])
    groups = draw.choice([1, 2])
    return config | {
        "num_local_experts": draw.choice([0, 3]),
        "layer_types": types,
        "shared_intermediate_size": draw.choice([24, 40]),
        "position_embedding_type": draw.choice(["rope", None]),
        "mamba_n_heads": groups * draw.choice([1, 2]),
        "mamba_n_groups": groups,
        "mamba_d_state": draw.choice([4, 16]),
        "mamba_d_conv": draw.choice([2, 4]),
        "mamba_conv_bias": draw.random() < 0.5,
        "mamba_proj_bias": draw.random() < 0.5,
    }


def _falcon_h1(draw: random.Random) -> Config:
    config = common("llama", draw)
    groups = draw.choice([1, 2])
    heads = groups * draw.choice([1, 2])
    return config | {
        "mamba_d_ssm": draw.choice([heads * 8, heads * 12]),
        "mamba_n_heads": heads,
        "mamba_n_groups": groups,
        "mamba_d_state": draw.choice([4, 16]),
        "mamba_conv_bias": draw.random() < 0.5,
        "mamba_proj_bias": draw.random() < 0.5,
        "mamba_rms_norm": draw.random() < 0.5,
        "projectors_bias": draw.random() < 0.5,
        "rms_norm_eps": 1e-6,
    }


def _nemotron_h(draw: random.Random) -> Config:
    config = common("llama", draw)
    kinds = ["linear_attention", "full_attention", "mlp", "moe"]
    layers = [draw.choice(kinds) for _ in range(config["num_hidden_layers"])]
    layers[draw.randrange(len(layers))] = "full_attention"
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
    told = draw.choice(
        [
            {"layers_block_type": layers},
            {"hybrid_override_pattern": "".join(letters[x] for x in layers)},
        ]
    )
    groups = draw.choice([1, 2])
    heads = groups * draw.choice([1, 3])
    kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    others = ("vocab_size", "max_position_embeddings", "pad_token_id")
    return (
        {name: config[name] for name in (*kept, *others)}
        | told
        | {
            "num_hidden_layers": len(layers),
            "head_dim": draw.choice([8, 16]),
            "mamba_num_heads": heads,
            "mamba_head_dim": draw.choice([4, 6]),
            "n_groups": groups,
            "ssm_state_size": draw.choice([4, 16]),
            "conv_kernel": draw.choice([2, 4]),
            "use_conv_bias": draw.random() < 0.5,
            "use_bias": draw.random() < 0.5,
            "mlp_bias": draw.random() < 0.5,
            "layer_norm_epsilon": 1e-6,
            "n_routed_experts": draw.choice([4, 6]),
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 24,
        }
    )


def _helium(draw: random.Random) -> Config:
    config = common("helium", draw)
    return config | {"head_dim": config["hidden_size"] // config["num_attention_heads"]}


def _gemma4(draw: random.Random) -> Config:
    config = common("gemma3_text", draw)
    layers = config["num_hidden_layers"]
    types = [draw.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    types[0], types[-1] = "sliding_attention", "full_attention"
    makers = {kind: types.index(kind) for kind in types}
    own = {
        "layer_types": types,
        "num_kv_shared_layers": draw.randrange(layers - max(makers.values())),
        "use_double_wide_mlp": draw.random() < 0.6,
        "hidden_size_per_layer_input": draw.choice([0, 6, 12]),
        "vocab_size_per_layer_input": draw.choice([64, 80]),
        "attention_k_eq_v": draw.random() < 0.4,
        "num_global_key_value_heads": draw.choice([1, None]),
        "global_head_dim": draw.choice([16, 32]),
        "sliding_window": draw.choice([4, 8]),
    }
    if draw.random() < 0.5:
        experts = {"num_experts": draw.choice([3, 5]), "top_k_experts": 2}
        own |= {"enable_moe_block": True, "moe_intermediate_size": 12, **experts}
    config = {name: x for name, x in config.items() if name != "sliding_window_pattern"}
    config.pop("query_pre_attn_scalar", None)
    return config | own


def _gemma3n(draw: random.Random) -> Config:
    same = ("layer_types", "num_kv_shared_layers", "vocab_size_per_layer_input", "sliding_window")
    config, own = common("gemma3_text", draw), _gemma4(draw)
    config |= {name: own[name] for name in same}
    layers = len(own["layer_types"])
    config.pop("query_pre_attn_scalar", None)
    config.pop("sliding_window_pattern", None)
    widths = [draw.choice([24, 40]) for _ in range(layers)]
    return config | {
        "num_hidden_layers": layers,
        "intermediate_size": draw.choice([24, widths]),
        "hidden_size_per_layer_input": draw.choice([6, 12]),
        "laurel_rank": draw.choice([2, 4]),
        "altup_num_inputs": draw.choice([2, 4]),
        "activation_sparsity_pattern": draw.choice([None, [0.9] + [0.0] * (layers - 1)]),
    }


def _gemma4_unified(draw: random.Random) -> Config:
    mixture = {"enable_moe_block", "moe_intermediate_size", "num_experts", "top_k_experts"}
    plain = {name: x for name, x in _gemma4(draw).items() if name not in mixture}
    return plain | {"attention_k_eq_v": True}


def _latents(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 4])
    sizes = {
        "hidden_size": 8 * heads,
        "intermediate_size": draw.choice([24, 40]),
        "moe_intermediate_size": draw.choice([12, 16]),
        "num_hidden_layers": draw.choice([1, 2, 5]),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "qk_nope_head_dim": draw.choice([128, 192]),
        "v_head_dim": draw.choice([6, 100]),
        "vocab_size": draw.choice([17, 64]),
        "max_position_embeddings": draw.choice([64, 256]),
        "pad_token_id": 0,
        "n_routed_experts": draw.choice([8, 16]),
        "num_experts_per_tok": 2,
    }
    switches = {
        "tie_word_embeddings": draw.random() < 0.5,
        "attention_bias": draw.random() < 0.5,
        "rms_norm_eps": draw.choice([1e-5, 1e-6]),
        "kv_lora_rank": draw.choice([12, 16]),
        "q_lora_rank": draw.choice([None, 10]),
        "qk_rope_head_dim": 4,
        "n_shared_experts": draw.choice([1, 2]),
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0,
            "mscale_all_dim": draw.choice([0.7, 1.0]), "original_max_position_embeddings": 32,
        },
    }  # fmt: skip
    return sizes | sometimes(draw, switches)


def _deepseek_v2(draw: random.Random) -> Config:
    grouped = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    return (
        _latents(draw) | draw.choice([{}, grouped]) | {"first_k_dense_replace": draw.choice([0, 1])}
    )


def _deepseek_v3(draw: random.Random) -> Config:
    own = {"first_k_dense_replace": draw.choice([0, 1]), "n_group": draw.choice([1, 4])}
    return _latents(draw) | own | {"topk_group": 1} | sometimes(draw, {"norm_topk_prob": False})


def _glm4_moe_lite(draw: random.Random) -> Config:
    return _latents(draw)


def _lfm2(draw: random.Random) -> Config:
    config = common("lfm2", draw)
    layers = config["num_hidden_layers"]
    attending = sorted({draw.randrange(layers) for _ in range(3)})
    types = ["full_attention" if layer in attending else "conv" for layer in range(layers)]
    return config | draw.choice([{"layer_types": types}, {"full_attn_idxs": attending}])


def _qwen3_5(draw: random.Random) -> Config:
    config = common("qwen3_5_text", draw)
    heads = draw.choice([1, 2, 3])
    sizes = {
        "num_hidden_layers": draw.choice([4, 5, 8]),
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads * draw.choice([1, 2]),
        "linear_key_head_dim": draw.choice([4, 8]),
        "linear_value_head_dim": draw.choice([4, 6]),
    }
    return config | sizes


def _qwen3_5_moe(draw: random.Random) -> Config:
    sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
    return _qwen3_5(draw) | sizes | {"num_experts": draw.choice([8, 9])}


def _gpt2(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5])
    config = {
        "n_embd": heads * draw.choice([4, 8]),
        "n_head": heads,
        "n_layer": draw.choice([1, 3]),
        "vocab_size": draw.choice([17, 64]),
        "n_positions": draw.choice([16, 32]),
    }
    switches = {
        "n_inner": draw.choice([24, 40]),
        "tie_word_embeddings": draw.random() < 0.5,
        "scale_attn_by_inverse_layer_idx": draw.random() < 0.5,
        "scale_attn_weights": draw.random() < 0.5,
        "layer_norm_epsilon": 1e-6,
    }
    return config | sometimes(draw, switches)


def _gpt_bigcode(draw: random.Random) -> Config:
    config = _gpt2(draw)
    config.pop("scale_attn_by_inverse_layer_idx", None)
    return config | {"multi_query": draw.random() < 0.5}


def _gptj(draw: random.Random) -> Config:
    config = _gpt_bigcode(draw)
    config.pop("multi_query")
    return config | {"rotary_dim": 4}


def _gpt_neo(draw: random.Random) -> Config:
    groups = draw.choice([[[["global", "local"], 2]], [[["local"], 1], [["global"], 2]]])
    heads = draw.choice([1, 2, 5])
    return {
        "hidden_size": 8 * heads,
        "num_heads": heads,
        "intermediate_size": draw.choice([None, 24]),
        "num_layers": sum(len(kinds) * times for kinds, times in groups),
        "attention_types": groups,
        "vocab_size": draw.choice([17, 64]),
        "max_position_embeddings": 32,
        "tie_word_embeddings": draw.random() < 0.5,
    }


def _bloom(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5, 6])
    sizes = {"n_layer": draw.choice([1, 3]), "n_head": heads, "vocab_size": draw.choice([17, 64])}
    width = draw.choice(["hidden_size", "n_embed"])
    return sizes | {width: 8 * heads, "tie_word_embeddings": draw.random() < 0.5}


def _mpt(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5, 6])
    sizes = {"n_layers": draw.choice([1, 3]), "n_heads": heads, "d_model": 8 * heads}
    return sizes | {"vocab_size": 17, "tie_word_embeddings": draw.random() < 0.5}


def _opt(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5])
    return {
        "hidden_size": 8 * heads,
        "num_attention_heads": heads,
        "num_hidden_layers": draw.choice([1, 3]),
        "ffn_dim": 24,
        "vocab_size": draw.choice([17, 64]),
        "max_position_embeddings": 32,
        "enable_bias": draw.random() < 0.7,
        "tie_word_embeddings": draw.random() < 0.5,
    }


def _falcon(draw: random.Random) -> Config:
    heads, new = draw.choice([2, 4]), draw.random() < 0.5
    return {
        "hidden_size": 8 * heads,
        "num_attention_heads": heads,
        "num_kv_heads": draw.choice([None, 2]) if new else None,
        "num_hidden_layers": draw.choice([1, 3]),
        "ffn_hidden_size": draw.choice([None, 24]),
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": draw.choice([None, 1, 2]) if new else None,
        "multi_query": draw.random() < 0.5,
        "parallel_attn": new or draw.random() < 0.5,
        "bias": draw.random() < 0.5,
        "vocab_size": draw.choice([17, 64]),
    }


def _gpt_neox(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5])
    config = {
        "hidden_size": heads * 16,
        "num_attention_heads": heads,
        "intermediate_size": draw.choice([24, 40]),
        "num_hidden_layers": draw.choice([1, 3]),
        "vocab_size": draw.choice([17, 64]),
    }
    switches = {
        "attention_bias": draw.random() < 0.5,
        "tie_word_embeddings": draw.random() < 0.5,
        "use_parallel_residual": draw.random() < 0.5,
        "rotary_pct": draw.choice([0.5, 1.0]),
        "layer_norm_eps": 1e-6,
    }
    return config | sometimes(draw, switches)
