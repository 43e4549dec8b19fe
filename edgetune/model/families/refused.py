"""What a model of an unsupported type is, so that the refusal can say it by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_EXPERT_FIELDS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_STATE_SPACE: Final = ("mamba", "rwkv", "jamba", "zamba", "bamba", "recurrent", "falcon_h1")
_ENCODERS: Final = ("bert", "electra", "mpnet", "esm", "roformer", "longformer", "funnel", "xlm")
_SENSES: Final = ("vision_config", "audio_config")


def kind_of(model_type: str, config: Mapping[str, object]) -> str | None:
    """Return what such a model is in a few words, ``None`` when nothing special is known."""
    if _has_experts(model_type, config):
        return "a mixture of experts"
    if any(config.get(name) for name in _SENSES) or "_vl" in model_type:
        return "a model of images or sound"
    if config.get("is_encoder_decoder") or "t5" in model_type or "bart" in model_type:
        return "an encoder-decoder"
    if any(name in model_type for name in _STATE_SPACE):
        return "a recurrent or state-space model"
    if any(name in model_type for name in _ENCODERS):
        return "an encoder"
    return None


def _has_experts(model_type: str, config: Mapping[str, object]) -> bool:
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    named = "moe" in model_type or model_type in {"mixtral", "dbrx", "gpt_oss", "deepseek_v3"}
    return named or any(config.get(name) or inner.get(name) for name in _EXPERT_FIELDS)
