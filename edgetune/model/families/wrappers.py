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


_TIED: Final = frozenset({"gemma3", "gemma3n", "gemma4", "gemma4_unified", "internvl", "mistral3"})
"""Those whose head is the embedding where neither config says so and the files hold no head."""
_EITHER: Final = frozenset({"llava", "llava_onevision"})
"""Those whose head is the embedding where one of the two configs says so."""


def wrapped(model_type: str, fields: Fields) -> ModelShape:
    """Return the shape of the language model inside a wrapper of this type."""
    from edgetune.model.families import reader

    known = INSIDE[model_type]
    inner = Fields(_text_config(model_type, fields))
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


def without_head(shape: ModelShape, config: Mapping[str, object]) -> ModelShape:
    """Return a shape as files without a head have it: transformers then ties some that are silent."""
    silent = config.get("tie_word_embeddings") is None
    return replace(shape, tied=True) if silent and config.get("model_type") in _TIED else shape


def _text_config(model_type: str, fields: Fields) -> dict[str, object]:
    """Return the inner config with what the outer one says of the head, which goes first.

    Where the outer one is silent the inner one counts, as before transformers 5.
    """
    text, tied = fields.table("text_config"), fields.raw("tie_word_embeddings")
    if tied is None or (tied is False and model_type in _EITHER):
        return text
    return {**text, "tie_word_embeddings": tied}
