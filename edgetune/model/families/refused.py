"""What a model of an unsupported type is, so that the refusal can say it by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from edgetune.model.families.kinds import KINDS

EXPERTS: Final = "a mixture of experts"
_EXPERT_FIELDS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SENSES: Final[Mapping[str, str]] = {
    "vision_config": "a vision-language model",
    "audio_config": "an audio model",
}
_PART: Final = re.compile(
    r"_(vision|audio|text|image|multimodal)(_model)?$|_(encoder|decoder|backbone|head|module)$"
    r"|_(qformer|perceiver|perciever|vqgan|vqmodel|patcher|transformer|codebook|bigvgan)$"
    r"|tokenizer(_model)?$|_talker|_token2wav$|_hifigan$|_adapter$"
)
"""Types of the parts that models of images, sound and text consist of."""


def kind_of(model_type: str, config: Mapping[str, object]) -> str | None:
    """Return what such a model is in a few words, ``None`` when nothing is known."""
    if _has_experts(model_type, config):
        return EXPERTS
    if model_type in KINDS:
        return KINDS[model_type]
    senses = [kind for name, kind in _SENSES.items() if config.get(name)]
    if senses or "_vl" in model_type:
        return senses[0] if senses else _SENSES["vision_config"]
    if config.get("is_encoder_decoder"):
        return "an encoder-decoder"
    return "a part of a larger model" if _PART.search(model_type) else None


def _has_experts(model_type: str, config: Mapping[str, object]) -> bool:
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    fields = any(config.get(name) or inner.get(name) for name in _EXPERT_FIELDS)
    return "moe" in re.split(r"[_-]", model_type) or fields
