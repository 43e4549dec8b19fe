"""Settings of random models that llama.cpp computes: what each family can have, by name."""

from __future__ import annotations

from typing import Any

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 192,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
}
GPT2 = {"vocab_size": 1024, "n_embd": 128, "n_positions": 512, "initializer_range": 0.08}
BLOOM = {"vocab_size": 1024, "hidden_size": 128, "n_head": 4, "initializer_range": 0.08}


def rope(kind: str, **settings: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=128)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)  # fmt: skip
LONGROPE = rope("longrope", factor=8.0, original_max_position_embeddings=16,
                short_factor=[1 + i / 16 for i in range(16)],
                long_factor=[2.0 + i for i in range(16)])  # fmt: skip
GEMMA3 = {"rope_parameters": {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}}  # fmt: skip
OLMO3 = {"rope_parameters": {
    "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
                       "original_max_position_embeddings": 128},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}  # fmt: skip
GEMMA3N = {
    "intermediate_size": 2048, "hidden_size_per_layer_input": 256, "laurel_rank": 64,
    "vocab_size_per_layer_input": 1000, "sliding_window": 64, "final_logit_softcapping": 30.0,
    "num_hidden_layers": 6, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.95] * 6,
}  # fmt: skip
SHARED = {
    "num_hidden_layers": 22, "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
    "layer_types": ["sliding_attention"] * 19 + ["full_attention"] * 2 + ["sliding_attention"],
}  # fmt: skip
"""Two layers read the keys of others: one of those that see a window, one that sees all."""
GEMMA4 = {
    "vocab_size_per_layer_input": 1100, "global_head_dim": 64, "sliding_window": 64,
    "hidden_size_per_layer_input": 32,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2
    + ["full_attention"],
}  # fmt: skip
LATENTS = {
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "q_lora_rank": 64, "moe_intermediate_size": 96, "n_group": 1, "topk_group": 1,
}  # fmt: skip
MAGNITUDES = {"mscale": 0.7, "mscale_all_dim": 0.7}
LITE = {"topk_method": "greedy", "q_lora_rank": None, "num_hidden_layers": 27}
WINDOW = {"sliding_window": 64, "num_hidden_layers": 7}
QWEN35 = {
    "layer_types": ["linear_attention", "full_attention"] * 2, "num_hidden_layers": 4,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32}  # fmt: skip
NO_WINDOW = {"sliding_window": None}
GRANITE4 = {
    "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 8, "mamba_d_state": 32,
    "shared_intermediate_size": 192, "logits_scaling": 1.5,
}  # fmt: skip
FALCON_H1 = {
    "mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 32,
    "lm_head_multiplier": 0.75,
}  # fmt: skip
NEMOTRON_H = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "ssm_state_size": 32,
    "time_step_min": 1e-3,
}
NEMOTRON_3 = {name: x for name, x in NEMOTRON_H.items() if name != "time_step_min"} | {
    "moe_intermediate_size": 96, "moe_shared_expert_intermediate_size": 160, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
GPT_OSS = {
    "sliding_window": 64, "swiglu_limit": 7.0, "num_hidden_layers": 2, "intermediate_size": 96,
    "rope_parameters": {  # with whole bounds, 0 and 4
        "rope_type": "yarn", "rope_theta": 2.0**20, "factor": 4.0, "truncate": False,
        "original_max_position_embeddings": 201},
}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3": ("llama", LLAMA3),
    "llama, linear": ("llama", rope("linear", factor=4.0)),
    "llama, yarn": ("llama", YARN),
    "mistral": ("mistral", NO_WINDOW),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": ("qwen2", YARN),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", WINDOW | {"query_pre_attn_scalar": 144}),
    "gemma3": ("gemma3_text", WINDOW),
    "gemma3, capped": ("gemma3_text", WINDOW | GEMMA3 | {"final_logit_softcapping": 20.0}),
    "gemma3n": ("gemma3n_text", GEMMA3N),
    "gemma3n, shared": ("gemma3n_text", GEMMA3N | SHARED),
    "gemma3n, stretched, unscaled, untied": (
        "gemma3n_text",
        GEMMA3N | GEMMA3 | {"altup_correct_scale": False, "tie_word_embeddings": False},
    ),
    "gemma4": ("gemma4_text", GEMMA4),
    "gemma4, untied, not shared": (
        "gemma4_text",
        GEMMA4
        | {"tie_word_embeddings": False, "num_kv_shared_layers": 0}
        | {"vocab_size_per_layer_input": 1000},
    ),
    "gemma4, 12B": ("gemma4_unified_text", {"sliding_window": 64, "global_head_dim": 64}),
    "gemma4, mixture": (
        "gemma4_moe",
        {"sliding_window": 64, "global_head_dim": 64, "moe_intermediate_size": 96},
    ),
    "deepseek_v2": (
        "deepseek_v2",
        LATENTS
        | {"topk_method": "greedy"}
        | rope("yarn", factor=4.0, original_max_position_embeddings=128, **MAGNITUDES),
    ),
    "deepseek_v2, lite": ("deepseek_v2", LATENTS | LITE | rope("default")),
    "deepseek_v3": ("deepseek_v3", LATENTS),
    "glm4_moe_lite": ("glm4_moe_lite", LATENTS | {"norm_topk_prob": True}),
    "lfm2": ("lfm2", {"num_hidden_layers": 3}),
    "qwen3.5": ("qwen3_5_text", QWEN35),
    "phi3": ("phi3", NO_WINDOW),
    "phi3, partial": ("phi3", NO_WINDOW | rope("default", partial_rotary_factor=0.5)),
    "phi3, longrope": ("phi3", NO_WINDOW | LONGROPE),
    "gpt2": ("gpt2", GPT2),
    "gpt2, scaled": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("gpt_neox", rope("default", partial_rotary_factor=0.5) | {"rotary_pct": 0.5}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", WINDOW | {"num_hidden_layers": 4}),
    "apertus": ("apertus", LLAMA3),
    "arcee": ("arcee", {}),
    "bloom": ("bloom", BLOOM),
    "cohere": ("cohere", {"logit_scale": 0.75}),
    "cohere2": ("cohere2", WINDOW | {"num_hidden_layers": 4, "logit_scale": 0.75}),
    "olmo3, yarn": ("olmo3", WINDOW | OLMO3 | {"num_hidden_layers": 4}),
    "ernie4_5": ("ernie4_5", {}),
    "exaone4": (
        "exaone4",
        {"layer_types": ["full_attention"] * 3, "num_hidden_layers": 3} | NO_WINDOW,
    ),
    "glm4": ("glm4", {}),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "mpt": (
        "mpt",
        {
            "vocab_size": 1024,
            "d_model": 128,
            "n_heads": 4,
            "max_seq_len": 512,
            "initializer_range": 0.08,
        },
    ),
    "nemotron": ("nemotron", {}),
    "mixtral": ("mixtral", {"sliding_window": None}),
    "granitemoe": ("granitemoe", {"intermediate_size": 96, "logits_scaling": 1.5}),
    "olmoe": ("olmoe", {"intermediate_size": 96, "num_key_value_heads": 4}),
    "qwen2_moe": ("qwen2_moe", {"moe_intermediate_size": 96, "mlp_only_layers": []}),
    "qwen3_moe": ("qwen3_moe", {"moe_intermediate_size": 96, "mlp_only_layers": []}),
    "phi": ("phi", {}),
    "granite 4": (
        "granitemoehybrid",
        GRANITE4 | {"layer_types": ["attention"] * 3, "position_embedding_type": "rope"},
    ),
    "granite 4 h": ("granitemoehybrid", GRANITE4),
    "granite 4 h, mixture": (
        "granitemoehybrid",
        GRANITE4 | {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 96},
    ),
    "falcon_h1": ("falcon_h1", FALCON_H1 | {"mamba_rms_norm": False}),
    "falcon_h1, normed, tied": ("falcon_h1", FALCON_H1 | {"tie_word_embeddings": True}),
    "nemotron_h": ("nemotron_h", NEMOTRON_H),
    "nemotron_h_moe": ("nemotron_h_moe", NEMOTRON_3),
    "nemotron_h_moe, not normalised": ("nemotron_h_moe", NEMOTRON_3 | {"norm_topk_prob": False}),
    "qwen3.5, mixture": ("qwen3_5_moe_text", QWEN35 | {"moe_intermediate_size": 96}),
    "gpt_oss": ("gpt_oss", GPT_OSS),
}
