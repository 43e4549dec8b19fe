"""Rotary settings, in every spelling, give the frequencies that transformers computes."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgetune.model.families import shape_of
from edgetune.profile import model_names, model_profile
from edgetune.shape import Rotary

Config = dict[str, Any]

SMALL: Config = {
    "hidden_size": 64,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 17,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
FACTORS = {
    "short_factor": [1.0 + i / 9 for i in range(16)],
    "long_factor": [2.0 + i for i in range(16)],
}
LONGROPE = {"rope_type": "longrope", **FACTORS}

CASES: dict[str, Config] = {
    "nothing said": {},
    "theta": {"rope_theta": 5e5},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e6},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
    "yarn": {"rope_scaling": YARN},
    "yarn without original": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn with its magnitude": {"rope_scaling": YARN | {"attention_factor": 0.5}},
    "yarn with mscale": {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    "yarn with other bounds": {
        "rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False}
    },
    "longrope": {"rope_scaling": LONGROPE | {"factor": 8.0}},
    "longrope, top-level original": {
        "rope_scaling": LONGROPE,
        "original_max_position_embeddings": 256,
    },
    "new spelling": {"rope_parameters": LLAMA3 | {"rope_theta": 3e5}},
    "both spellings": {
        "rope_scaling": LLAMA3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e5},
        "rope_theta": 7e4,
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_llama_spellings(family: str, case: str) -> None:
    _compare({"model_type": family, **SMALL, **CASES[case]})


PHI3: dict[str, Config] = {
    "su": {"rope_scaling": {"type": "su", "original_max_position_embeddings": 4096, **FACTORS}},
    "yarn": {
        "rope_scaling": {"type": "yarn", **FACTORS},
        "original_max_position_embeddings": 512,
    },
    "longrope": {"rope_scaling": {"type": "longrope", **FACTORS}},
    "partial": {"partial_rotary_factor": 0.5, "rope_theta": 250000.0},
    "new": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
}
GPT_NEOX: dict[str, Config] = {
    "nothing said": {},
    "old": {"rotary_pct": 0.5, "rotary_emb_base": 500},
    "new": {"rope_parameters": {"rope_theta": 77.0, "partial_rotary_factor": 1.0}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
}
GEMMA3: dict[str, Config] = {
    "nothing said": {},
    "bases": {"rope_theta": 5e5, "rope_local_base_freq": 77.0},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "new": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 4e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 99.0},
        }
    },
}


LATENTS = {
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 8, "kv_lora_rank": 8, "v_head_dim": 8,
    "q_lora_rank": None, "moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
DEEPSEEK: dict[str, Config] = {
    "yarn": {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    "yarn, top-level original": {
        "rope_scaling": YARN | {"mscale_all_dim": 0.7},
        "original_max_position_embeddings": 256,
    },
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0, "mscale_all_dim": 0.7}},
}


@pytest.mark.parametrize("case", DEEPSEEK)
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite"])
def test_deepseek_spellings(family: str, case: str) -> None:
    config = {"model_type": family, **SMALL, **LATENTS, **DEEPSEEK[case]}
    config["num_key_value_heads"] = config["num_attention_heads"]
    _compare(config)

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**deepcopy(config)))
    scale = model.base_model.layers[0].self_attn.scaling
    assert shape_of(config).attention[0].scale == pytest.approx(scale)


@pytest.mark.parametrize("case", PHI3)
def test_phi3_spellings(case: str) -> None:
    _compare({"model_type": "phi3", **SMALL, **PHI3[case]})


@pytest.mark.parametrize("case", GPT_NEOX)
def test_gpt_neox_spellings(case: str) -> None:
    _compare({"model_type": "gpt_neox", **SMALL, **GPT_NEOX[case]})


@pytest.mark.parametrize("fields", [{}, {"partial_rotary_factor": 0.5}], ids=["default", "half"])
def test_stablelm_rotates_part_of_a_head(fields: Config) -> None:
    _compare({"model_type": "stablelm", **SMALL, **fields})


@pytest.mark.parametrize("case", GEMMA3)
def test_gemma3_local_and_global_layers(case: str) -> None:
    config = {"model_type": "gemma3_text", **SMALL, "head_dim": 32, **GEMMA3[case]}
    module, attention = _transformers_rotary(config), shape_of(config).attention

    for layer, kind in ((0, "sliding"), (5, "full")):
        frequencies = getattr(module, f"{kind}_attention_inv_freq")
        rule = attention[layer].rotary
        assert rule is not None
        torch.testing.assert_close(_frequencies(rule, 1), frequencies)


def test_smollm3_leaves_every_fourth_layer_unrotated() -> None:
    attention = shape_of({"model_type": "smollm3", **SMALL}).attention

    unrotated = [layer for layer, rule in enumerate(attention) if rule.rotary is None]
    assert unrotated == [3]
    _compare({"model_type": "smollm3", **SMALL})


@pytest.mark.parametrize("name", ["llama-3.2-1b", "phi-3.5-mini", "phi-4", "pythia-160m"])
def test_published_settings(name: str) -> None:
    assert name in model_names()
    small = {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 8, "pad_token_id": 0}
    _compare({**model_profile(name).config, **small})


def _compare(config: Config) -> None:
    module, rule = _transformers_rotary(config), shape_of(config).attention[0].rotary
    assert rule is not None

    torch.testing.assert_close(_frequencies(rule, 1), module.original_inv_freq)
    assert rule.attention_factor == pytest.approx(module.attention_scaling)
    if rule.scaling == "longrope":
        beyond = rule.original_context
        module(torch.zeros(1), torch.tensor([[beyond]]))
        torch.testing.assert_close(_frequencies(rule, beyond + 1), module.inv_freq)


def _transformers_rotary(config: Config) -> Any:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**deepcopy(config)))
    return model.base_model.rotary_emb


def _frequencies(rule: Rotary, length: int) -> torch.Tensor:
    """Return the angle per position of each pair of channels, by the published formulas."""
    pairs = torch.arange(0, rule.dimensions, 2).float() / rule.dimensions
    plain = 1.0 / rule.theta**pairs
    match rule.scaling:
        case "none":
            return plain
        case "linear":
            return plain / rule.factor
        case "llama3":
            return _llama3(rule, plain)
        case "longrope":
            long = length > rule.original_context
            return plain / torch.tensor(rule.long_factors if long else rule.short_factors)
        case "yarn":
            return _yarn(rule, plain)


def _llama3(rule: Rotary, plain: torch.Tensor) -> torch.Tensor:
    turns = rule.original_context * plain / (2 * math.pi)
    spread = rule.high_frequency_factor - rule.low_frequency_factor
    kept = ((turns - rule.low_frequency_factor) / spread).clamp(0, 1)
    return plain * (kept + (1 - kept) / rule.factor)


def _yarn(rule: Rotary, plain: torch.Tensor) -> torch.Tensor:
    low, high = (_yarn_channel(rule, turns) for turns in (rule.beta_fast, rule.beta_slow))
    if rule.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rule.dimensions - 1)
    ramp = (torch.arange(rule.dimensions // 2) - low) / (high - low)
    stretched = ramp.clamp(0, 1)
    return plain * (1 - stretched + stretched / rule.factor)


def _yarn_channel(rule: Rotary, turns: float) -> float:
    ratio = math.log(rule.original_context / (turns * 2 * math.pi))
    return rule.dimensions * ratio / (2 * math.log(rule.theta))
