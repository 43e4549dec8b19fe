"""Small random models of every family, as folders that transformers wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from edgetune.model.families import shape_of
from edgetune.model.families.wrappers import INSIDE
from edgetune.shape import BlockShape

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWS = {"sliding_window": 5}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
    "factor": 8.0, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 5.0, 8.0],
}  # fmt: skip
"""Settings of a rotation that documents of more than 16 tokens change."""
GPT2 = {
    "vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENTS = {name: x for name, x in SMALL.items() if name != "head_dim"} | {
    "num_key_value_heads": 4, "kv_lora_rank": 12, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "moe_intermediate_size": 24, "n_routed_experts": 6, "num_experts_per_tok": 3,
    "n_shared_experts": 2, "routed_scaling_factor": 1.5,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": SMALL | WINDOWS,
    "qwen2": SMALL,
    "qwen3": SMALL,
    "gemma": SMALL,
    "gemma2": SMALL | WINDOWS | {"query_pre_attn_scalar": 16},
    "gemma3_text": SMALL | WINDOWS | {"query_pre_attn_scalar": 16},
    "gemma4_text": SMALL | WINDOWS | {
        "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 12, "num_hidden_layers": 6,
        "global_head_dim": 16, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
        "final_logit_softcapping": 20.0,
        "layer_types": [
            "sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
            "full_attention", "full_attention"]},
    "gemma4_unified_text": SMALL | WINDOWS | {
        "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    "phi3": SMALL | WINDOWS,
    "olmo2": SMALL,
    "gpt_neox": SMALL | {"rotary_pct": 0.5, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "gpt2": GPT2,
    "olmo3": SMALL | WINDOWS | {"num_hidden_layers": 4},
    "ministral": SMALL | WINDOWS | {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "ministral3": SMALL | {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1}},
    "cohere": SMALL | {"logit_scale": 0.25},
    "cohere2": SMALL | WINDOWS | {"logit_scale": 0.25, "num_hidden_layers": 4},
    "glm": SMALL,
    "glm4": SMALL,
    "exaone4": SMALL | WINDOWS | {"num_hidden_layers": 4},
    "ernie4_5": SMALL,
    "hunyuan_v1_dense": SMALL | {"rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0}},
    "seed_oss": SMALL | {"attention_out_bias": True},
    "granite": SMALL | {
        "attention_multiplier": 0.25, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
        "residual_multiplier": 0.5},
    "granitemoehybrid": SMALL | {
        "attention_multiplier": 0.25, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
        "residual_multiplier": 0.5, "num_local_experts": 0, "shared_intermediate_size": 48,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 8},
    "nemotron": SMALL | {"initializer_range": 0.1},
    "nemotron_h": SMALL | {
        "layer_types": ["linear_attention", "mlp", "full_attention", "linear_attention"],
        "num_hidden_layers": 4, "mamba_num_heads": 4, "mamba_head_dim": 12, "n_groups": 2,
        "ssm_state_size": 8, "time_step_min": 0.8},
    "nemotron_h_moe": SMALL | {
        "layer_types": ["moe", "full_attention", "linear_attention", "moe"],
        "num_hidden_layers": 4, "mamba_num_heads": 4, "mamba_head_dim": 12, "n_groups": 2,
        "ssm_state_size": 8, "n_routed_experts": 6, "num_experts_per_tok": 3, "n_group": 3,
        "topk_group": 2, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 40,
        "routed_scaling_factor": 1.5},
    "apertus": SMALL,
    "arcee": SMALL,
    "helium": SMALL,
    "cwm": SMALL | WINDOWS,
    "gptj": GPT2 | {"n_layer": 2, "rotary_dim": 4},
    "phi": SMALL,
    "gpt_neo": {
        "vocab_size": 97, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "window_size": 5,
        "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 128,
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_bigcode": GPT2,
    "falcon": {
        "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_kv_heads": 2, "new_decoder_architecture": True, "initializer_range": 0.2,
        "bos_token_id": 1, "eos_token_id": 2},
    "falcon_h1": SMALL | {
        "mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 8,
        "mamba_rms_norm": True, "mamba_norm_before_gate": False, "embedding_multiplier": 2.5,
        "lm_head_multiplier": 0.5, "mlp_multipliers": [0.7, 0.6], "key_multiplier": 0.4,
        "attention_in_multiplier": 0.9, "attention_out_multiplier": 0.8, "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.5, "ssm_multipliers": [0.8, 0.7, 0.6, 0.9, 0.5]},
    "bloom": {
        "vocab_size": 97, "hidden_size": 48, "n_layer": 3, "n_head": 6,
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2},
    "mpt": {
        "vocab_size": 97, "d_model": 48, "n_layers": 3, "n_heads": 6, "max_seq_len": 128,
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2},
    "opt": {
        "vocab_size": 97, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 128, "init_std": 0.2,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "stablelm": SMALL | {"partial_rotary_factor": 0.5},
    "qwen3_5_text": SMALL | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 6},
    "lfm2": SMALL | {
        "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.5, "initializer_range": 0.3},
    "qwen3_5_moe_text": SMALL | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 6, "moe_intermediate_size": 24, "num_experts": 5,
        "initializer_range": 0.15,
        "num_experts_per_tok": 2, "shared_expert_intermediate_size": 40},
    "qwen2_moe": SMALL | {
        "moe_intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]},
    "qwen3_moe": SMALL | {
        "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3,
        "norm_topk_prob": True, "mlp_only_layers": [1], "num_hidden_layers": 3},
    "mixtral": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": SMALL | {
        "num_local_experts": 5, "num_experts_per_tok": 3, "intermediate_size": 24,
        "attention_multiplier": 0.25, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
        "residual_multiplier": 0.5},
    "gpt_oss": SMALL | WINDOWS | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.5,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "truncate": False,
            "original_max_position_embeddings": 8}},
    "olmoe": SMALL | {"num_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 24},
    "olmo": SMALL,
    "persimmon": SMALL | {"rope_parameters": {
        "rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5}},
    "gemma4_moe": SMALL | WINDOWS | {
        "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 0, "global_head_dim": 16,
        "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True,
        "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 24,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    "deepseek_v2": LATENTS | {
        "q_lora_rank": None, "first_k_dense_replace": 1, "n_group": 3, "topk_group": 2,
        "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 0.707,
            "mscale_all_dim": 0.5, "original_max_position_embeddings": 8}},
    "deepseek_v3": LATENTS | {
        "q_lora_rank": 10, "first_k_dense_replace": 1, "n_group": 3, "topk_group": 2,
        "norm_topk_prob": True, "num_nextn_predict_layers": 0},
    "glm4_moe_lite": LATENTS | {
        "q_lora_rank": 10, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "v_head_dim": 8, "rms_norm_eps": 1e-4},
    "phimoe": SMALL | {
        "num_local_experts": 5, "intermediate_size": 24, "router_jitter_noise": 0.2,
        "attention_bias": True, "lm_head_bias": True, "rope_parameters": LONGROPE | {
            "original_max_position_embeddings": 64, "short_mscale": 1.2, "long_mscale": 1.2}},
    "gemma3n_text": SMALL | WINDOWS | {
        "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 12, "num_hidden_layers": 6,
        "num_kv_shared_layers": 3, "laurel_rank": 6, "final_logit_softcapping": 20.0,
        "activation_sparsity_pattern": [0.7, 0.6, 0.0, 0.0, 0.0, 0.0], "layer_types": [
            "sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
            "full_attention", "full_attention"]},
}  # fmt: skip

MODEL_TYPES = {"gemma4_moe": "gemma4_text", "nemotron_h_moe": "nemotron_h"}
"""What the configs of families call themselves that are a variant of another one."""

SHAPES = {
    family: shape_of({"model_type": MODEL_TYPES.get(family, family)} | own)
    for family, own in FAMILIES.items()
}

MIXTURES = frozenset(family for family, shape in SHAPES.items() if shape.has_experts)
"""Families whose MLPs are experts, which are not adapted."""


def _kind(block: BlockShape) -> tuple[bool, type, bool]:
    """Return whether a block attends, what else carries a state, and whether it lends its keys."""
    rule = block.attention
    return rule is not None, type(block.recurrent), rule is not None and rule.lends


_KINDS = {
    _kind(block): family for family, shape in reversed(SHAPES.items()) for block in shape.kinds
}
"""The first family that has a block of a kind."""

_CARRYING = {kind: family for kind, family in _KINDS.items() if kind[1] is not type(None)}

RECURRENT = tuple(_CARRYING.values())
"""A family of each mixer that carries a state, in place of attention or beside it."""

MIXERS = tuple(family for (attends, *_), family in _CARRYING.items() if not attends)
"""Those in which it is in place of attention."""

CARRYING = (*RECURRENT, _KINDS[True, type(None), True])
"""Families of which some layers carry a state from token to token, or read what others cached."""

WRAPPERS = {
    "gemma3": {
        "text_config": FAMILIES["gemma3_text"],
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
        },
        "mm_tokens_per_image": 4, "image_token_index": 96, "boi_token_index": 94,
        "eoi_token_index": 95,
    },
    "gemma4": {
        "text_config": FAMILIES["gemma4_text"],
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 2, "patch_size": 4,
            "position_embedding_size": 16,
        },
    },
    "gemma4_unified": {
        "text_config": FAMILIES["gemma4_unified_text"],
        "vision_config": {"mm_embed_dim": 16, "mm_posemb_size": 4, "output_proj_dims": 16},
    },
    "qwen3_5": {
        "text_config": FAMILIES["qwen3_5_text"],
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 24, "depth": 2, "num_heads": 2,
            "patch_size": 4, "out_hidden_size": 32, "num_position_embeddings": 16,
        },
    },
}  # fmt: skip
"""Families whose folders load as a class around the decoder, with parts for images beside it."""


LAYERS = {"gpt2": "n_layer", "gptj": "n_layer", "gpt_bigcode": "n_layer", "bloom": "n_layer",
          "mpt": "n_layers"}  # fmt: skip
"""What families call the number of their layers, if not ``num_hidden_layers``."""


def _with_layers(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes in which ``layers`` is the number of layers, by the family's name for it."""
    changes = dict(changes)
    count = changes.pop("layers", None)
    if count is None:
        return changes
    if family == "gpt_neo":
        return changes | {"num_layers": count, "attention_types": [[["local"], count]]}
    return changes | {LAYERS.get(family, "num_hidden_layers"): count}


def make_model(
    folder: Path, family: str, *, dtype: torch.dtype = torch.float32, **changes: object
) -> Path:
    """Write a random model of a family and return its folder.

    Every tensor is random, norms and biases too: a part that is left out changes the logits.
    """
    settings = (FAMILIES | WRAPPERS)[family] | _with_layers(family, changes)
    if "layer_types" in settings:
        settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
    if "activation_sparsity_pattern" in settings:
        count = settings["num_hidden_layers"]
        settings["activation_sparsity_pattern"] = settings["activation_sparsity_pattern"][:count]
    if "num_kv_shared_layers" in settings:  # which must leave one of each type
        shared = min(settings["num_kv_shared_layers"], settings["num_hidden_layers"] - 2)
        settings["num_kv_shared_layers"] = max(0, shared)
    config = AutoConfig.for_model(MODEL_TYPES.get(family, family), **settings)
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if family in WRAPPERS else AutoModelForCausalLM
    model = auto.from_config(config)
    _fill(model, family)
    model.to(dtype).save_pretrained(folder)
    return folder


def _fill(model: PreTrainedModel, family: str) -> None:
    """Draw what begins as zeros or ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(("bias", "sinks", "scale")) or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if family.startswith("gemma3n") and "embed_tokens" in name:
                # a token of zeros stays one through all layers, and each norm's slope there is 1,000
                parameter[0] = torch.randn_like(parameter[0]) * 0.2
            if ".altup." in name:  # of which all but the router begin as zeros
                parameter.add_(torch.randn_like(parameter) * 0.3)
            if name.endswith(("alpha_p", "alpha_n")):  # of an activation
                parameter.add_(torch.randn_like(parameter) * 0.5)
            if name.endswith("A_log"):  # so that a state is not gone after a token
                parameter.sub_(3)
            if family.startswith(("gemma4", "gemma3n")) and name.endswith("q_norm.weight"):
                parameter.mul_(0.3)  # which is all that scales the scores of this family
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.3)
            if name.endswith("layer_scalar"):
                buffer.mul_(0.7 + 0.5 * torch.rand_like(buffer))


_EYES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
_SIGLIP = _EYES | {"model_type": "siglip_vision_model"}
_CLIP = _EYES | {"model_type": "clip_vision_model", "projection_dim": 8}
_TOWERS: dict[str, dict[str, Any]] = {
    "gemma3": _SIGLIP,
    "gemma4": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 2, "patch_size": 4,
        "position_embedding_size": 16},
    "gemma4_unified": {"mm_embed_dim": 16, "mm_posemb_size": 4, "output_proj_dims": 16},
    "internvl": _EYES | {
        "model_type": "internvl_vision", "image_size": [8, 8], "patch_size": [4, 4]},
    "llava": _CLIP,
    "llava_next": _CLIP,
    "llava_onevision": _SIGLIP,
    "mistral3": _EYES | {"model_type": "pixtral", "head_dim": 8},
    "qwen3_5": {
        "hidden_size": 16, "intermediate_size": 24, "depth": 2, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 32, "num_position_embeddings": 16},
}  # fmt: skip
_TOWERS["qwen3_5_moe"] = _TOWERS["qwen3_5"]


class AroundGemma3n(torch.nn.Module):
    """Gemma 3n as its folders have it: transformers' own class wants timm for what sees."""

    def __init__(self, inner: PreTrainedModel) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.language_model = inner.base_model
        self.model.embed_vision = torch.nn.Linear(4, 4)
        self.lm_head = inner.get_output_embeddings()
        self._inner = [inner]

    def forward(self, input_ids: torch.Tensor) -> Any:
        """Return what the language model makes of tokens."""
        return self._inner[0](input_ids=input_ids)

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder with all tensors but the head, which is the embedding.

        The last layers have keys' and values' projections that nothing uses, as those on the hub do.
        """
        folder.mkdir(exist_ok=True)
        config = self._inner[0].config
        tensors = {k: x.contiguous() for k, x in self.state_dict().items() if "lm_head" not in k}
        layers = "model.language_model.layers."
        for layer in range(
            config.num_hidden_layers - config.num_kv_shared_layers, config.num_hidden_layers
        ):
            for name in ("k_proj", "v_proj", "k_norm"):
                like = tensors[f"{layers}0.self_attn.{name}.weight"]
                tensors[f"{layers}{layer}.self_attn.{name}.weight"] = torch.randn_like(like)
        save_file(tensors, folder / "model.safetensors")
        text = config.to_dict()
        whole = {"model_type": "gemma3n", "text_config": text, "tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(whole))


def make_wrapper(folder: Path, wrapper: str, inner: str | None = None, **changes: object) -> Any:
    """Write a random vision-language model and return it as transformers has it."""
    family = inner or INSIDE[wrapper][0]
    text = {"model_type": family, **FAMILIES[family]}
    if wrapper == "gemma3n":
        torch.manual_seed(0)
        decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(**text))
        _fill(decoder, family)
        around = AroundGemma3n(decoder)
        around.eval().save_pretrained(folder)
        return around
    changes = {"tie_word_embeddings": AutoConfig.for_model(**text).tie_word_embeddings} | changes
    config = AutoConfig.for_model(
        wrapper, text_config=text, vision_config=_TOWERS[wrapper], **changes
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(folder)
    return model
