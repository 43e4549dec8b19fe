"""What random configs of most families have: sizes, and switches that are there or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Config = dict[str, Any]


def common(family: str, draw: random.Random) -> Config:
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([1, 2, 4])
    head_dim = draw.choice([8, 16])
    config = {
        "hidden_size": heads * head_dim,
        "intermediate_size": draw.choice([24, 40, 72]),
        "num_hidden_layers": draw.choice([1, 2, 5, 9]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": draw.choice([17, 64]),
        "max_position_embeddings": draw.choice([64, 256]),
        # transformers' padding tokens lie outside such small vocabularies
        "pad_token_id": 0,
    }
    return config | sometimes(draw, switches(family, draw, head_dim))


def switches(family: str, draw: random.Random, head_dim: int) -> Config:
    """Return what a config may say besides; of a family that is not named, what all may say."""
    usual = {"tie_word_embeddings": draw.random() < 0.5}
    biased = {"attention_bias": draw.random() < 0.7}
    windowed = {"sliding_window": draw.choice([4, 8, None])}
    wide = {"head_dim": draw.choice([head_dim * 2, head_dim])}
    sometimes_windowed = {
        "use_sliding_window": draw.random() < 0.6,
        "sliding_window": draw.choice([8, None]),
        "max_window_layers": draw.choice([0, 1, 2, 4]),
    }
    eps = {"rms_norm_eps": draw.choice([1e-5, 1e-6])}
    return (
        usual
        | {
            family: {},
            "gemma": wide | biased | eps,
            "gemma2": wide | biased | windowed | eps | {"query_pre_attn_scalar": 24},
            "gemma3_text": wide
            | biased
            | windowed
            | {"sliding_window_pattern": draw.choice([2, 3]), "query_pre_attn_scalar": 24},
            "granitemoe": biased | eps | {"num_local_experts": 3, "attention_multiplier": 0.25},
            "granite": biased | eps | {"mlp_bias": True, "attention_multiplier": 0.25},
            "llama": wide | biased | eps | {"mlp_bias": draw.random() < 0.5},
            "mistral": wide | windowed | eps,
            "olmo": biased,
            "olmo2": biased | eps,
            "persimmon": {"partial_rotary_factor": 0.5, "qk_layernorm": draw.random() < 0.7},
            "phi": {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-6},
            "phi3": windowed | eps | {"partial_rotary_factor": 0.5},
            "qwen2": sometimes_windowed | eps,
            "qwen3": wide | biased | sometimes_windowed | eps,
            "smollm3": biased | {"no_rope_layer_interval": draw.choice([2, 4])} | eps,
            "apertus": biased | eps | {"hidden_act": draw.choice(["xielu", "relu2"])},
            "arcee": biased | eps | {"mlp_bias": draw.random() < 0.5},
            "cohere": biased | {"layer_norm_eps": 1e-6, "logit_scale": 0.5},
            "cohere2": biased
            | windowed
            | {"layer_norm_eps": 1e-6, "sliding_window_pattern": draw.choice([2, 3])},
            "cwm": wide | eps | {"sliding_window": 8, "mlp_bias": draw.random() < 0.5},
            "ernie4_5": wide | eps | {"use_bias": draw.random() < 0.5},
            "exaone4": {"sliding_window": 8, "sliding_window_pattern": 2} | eps,
            "glm": wide | biased | eps,
            "glm4": wide | biased | eps,
            "helium": biased | eps | {"mlp_bias": draw.random() < 0.5},
            "hunyuan_v1_dense": wide | biased | eps,
            "lfm2": {
                "conv_bias": draw.random() < 0.5,
                "conv_L_cache": draw.choice([1, 3, 4]),
                "block_ff_dim": draw.choice([24, 40]),
                "block_auto_adjust_ff_dim": draw.random() < 0.5,
                "block_ffn_dim_multiplier": draw.choice([1.0, 1.3]),
                "block_multiple_of": 8,
                "norm_eps": 1e-6,
            },
            "ministral": wide | windowed | eps,
            "ministral3": wide | windowed | eps,
            "nemotron": wide | biased | {"mlp_bias": draw.random() < 0.5, "norm_eps": 1e-6},
            "olmo3": biased | windowed | eps,
            "gpt_oss": wide
            | windowed
            | eps
            | {"num_local_experts": draw.choice([4, 6]), "attention_bias": True},
            "mixtral": wide | eps | {"num_local_experts": 3, "sliding_window": None},
            "phimoe": biased | eps | {"num_local_experts": 3, "lm_head_bias": draw.random() < 0.5},
            "olmoe": biased | eps | {"num_experts": draw.choice([9, 12])},
            "qwen2_moe": eps
            | {
                "num_experts": draw.choice([4, 6]),
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 24,
                "qkv_bias": draw.random() < 0.5,
            },
            "qwen3_moe": biased
            | eps
            | {
                "num_local_experts": draw.choice([8, 11]),
                "moe_intermediate_size": 16,
                "decoder_sparse_step": draw.choice([1, 2]),
                "mlp_only_layers": [0],
            },
            "qwen3_5_text": wide
            | biased
            | eps
            | {
                "full_attention_interval": draw.choice([2, 4]),
                "linear_conv_kernel_dim": draw.choice([2, 4]),
            },
            "seed_oss": wide
            | biased
            | eps
            | {"attention_out_bias": draw.random() < 0.5, "mlp_bias": draw.random() < 0.5},
            "stablelm": {
                "use_qkv_bias": draw.random() < 0.5,
                "use_parallel_residual": draw.random() < 0.5,
                "layer_norm_eps": 1e-6,
            },
            "starcoder2": windowed | {"use_bias": draw.random() < 0.7, "norm_epsilon": 1e-6},
        }[family]
    )


def sometimes(draw: random.Random, fields: Config) -> Config:
    return {name: value for name, value in fields.items() if draw.random() < 0.8}


def with_head_size(family: str) -> Callable[[random.Random], Config]:
    """Return configs that say how large a head is, without which transformers makes no model."""

    def make(draw: random.Random) -> Config:
        config = common(family, draw)
        return {"head_dim": config["hidden_size"] // config["num_attention_heads"]} | config

    return make
