"""A random model of each family that files are written of, as a folder and as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_models import ARCHITECTURES, convert, exported
from models import FAMILIES, SMALL, make_model

from edgetune.model import LocalModel

OWN = {
    "granite": SMALL | {"attention_multiplier": 0.2, "embedding_multiplier": 3.0,
                        "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "smollm3": SMALL,
    "stablelm": SMALL | {"head_dim": None, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "starcoder2": SMALL | {"sliding_window": None},
}  # fmt: skip
"""Families beyond those of ``models``."""

CHANGED: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"mlp_only_layers": []},
    "phimoe": {  # as published: files say neither the jitter nor by what scores grow
        "router_jitter_noise": 0.01, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0,
            "original_max_position_embeddings": 64, "short_factor": [1.0, 1.125, 1.25, 1.375],
            "long_factor": [2.0, 3.0, 5.0, 8.0], "short_mscale": 1.243163121016122,
            "long_mscale": 1.243163121016122}},
}  # fmt: skip
"""What is otherwise than in ``models``."""

GEMMA3N = {
    "num_hidden_layers": 22, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 1024, "laurel_rank": 64, "final_logit_softcapping": 30.0,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
    "layer_types": ["sliding_attention"] * 19 + ["full_attention"] * 2 + ["sliding_attention"],
}  # fmt: skip
GEMMA4 = (
    ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"] + ["full_attention"] * 2
)
LATENTS = {
    "n_group": 1, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 0.7,
        "mscale_all_dim": 0.7, "original_max_position_embeddings": 8},
}  # fmt: skip
QWEN35 = {
    "layer_types": ["linear_attention", "full_attention"] * 2, "num_hidden_layers": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip

EXPORTED: dict[str, dict[str, Any]] = {
    "apertus": {}, "bloom": {}, "deepseek_v2": LATENTS | {"topk_method": "greedy"}, "deepseek_v3": LATENTS,
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    "gemma3n_text": GEMMA3N, "gemma4_moe": {}, "gemma4_text": {"vocab_size_per_layer_input": 1024, "layer_types": GEMMA4},
    "glm4": {}, "gpt_bigcode": {}, "hunyuan_v1_dense": {}, "lfm2": {"hidden_size": 64}, "mpt": {},
    "olmo3": {}, "phi": {}, "qwen3_5_text": QWEN35,
    "qwen3_5_moe_text": QWEN35 | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
    "granitemoehybrid": {"shared_intermediate_size": 64},
    "falcon_h1": {}, "nemotron_h": {"time_step_min": 1e-3},
    "nemotron_h_moe": {"n_group": 1, "topk_group": 1},
    "gpt_oss": {"swiglu_limit": 7.0, "intermediate_size": 64},
}  # fmt: skip
"""Families whose files are our own."""


def exported_pair(family: str, folder: Path, kind: str = "f32") -> tuple[LocalModel, LocalModel]:
    """Return a model as transformers wrote it, and as our own export does."""
    made = make_model(folder / "folder", family, vocab_size=1024, **EXPORTED[family])
    base = LocalModel.open(made)
    return base, LocalModel.open(exported(base, folder / "model.gguf", kind))


def converted_pair(family: str, folder: Path) -> tuple[LocalModel, LocalModel]:
    """Return a model as transformers wrote it, and as llama.cpp's script converts it."""
    if family in OWN:
        FAMILIES.setdefault(family, OWN[family])
    made = make_model(folder / "folder", family, **CHANGED.get(family, {}))
    return LocalModel.open(made), LocalModel.open(convert(made, folder / "model.gguf"))


def any_pair(family: str, folder: Path) -> tuple[LocalModel, LocalModel]:
    """Return a model as a folder and as a file."""
    return exported_pair(family, folder) if family in EXPORTED else converted_pair(family, folder)


EVERY = sorted({*EXPORTED, *ARCHITECTURES})
