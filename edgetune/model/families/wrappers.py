"""Vision-language models around a decoder of a known family: only that is trained.

The tower that sees and the projector behind it are neither read nor adapted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.shape import ModelShape

INSIDE: Final[Mapping[str, tuple[str, ...]]] = {
    "gemma3": ("gemma3_text",),
    "gemma3n": ("gemma3n_text",),
    "gemma4": ("gemma4_text",),
    "gemma4_unified": ("gemma4_unified_text",),
    "internvl": ("qwen2", "qwen3", "llama"),
    "llava": ("llama", "mistral", "qwen2"),
    "llava_next": ("llama", "mistral", "qwen2"),
    "llava_onevision": ("qwen2", "qwen3", "llama"),
    "mistral3": ("mistral", "ministral3"),
    "qwen3_5": ("qwen3_5_text",),
    "qwen3_5_moe": ("qwen3_5_moe_text",),
}
"""By wrapper the families that can be inside; the first where the config does not say."""


def wrapped(model_type: str, fields: Fields) -> ModelShape:
    """Return the shape of the language model inside a wrapper of this type."""
    from edgetune.model.families import reader

    known = INSIDE[model_type]
    inner = Fields(_text_config(fields))
    found = inner.raw("model_type") or known[0]
    if found not in known:
        fields.problems.append(
            f"text_config: its model_type is {short(found)}; supported: {', '.join(known)}"
        )
        found = known[0]
    shape = reader(str(found))(inner)
    fields.problems += [f"text_config: {problem}" for problem in inner.problems]
    shape = replace(shape, inside="model.language_model")
    inherits = inner.raw("dtype") is None and inner.raw("torch_dtype") is None
    return replace(shape, dtype=fields.dtype()) if inherits else shape


def _text_config(fields: Fields) -> dict[str, object]:
    """Return the inner config; whether embeddings are tied can be said in the outer one alone."""
    text, tied = fields.table("text_config"), fields.raw("tie_word_embeddings")
    return text if tied is None else {"tie_word_embeddings": tied, **text}
