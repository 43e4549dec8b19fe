"""One file a family; each turns a ``config.json`` into a :class:`ModelShape`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Final, cast

from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.model.config import Fields
from edgetune.model.families.refused import kind_of
from edgetune.model.families.wrappers import INSIDE, wrapped
from edgetune.model.published import refuse_unread
from edgetune.shape import ModelShape

_SHOWN: Final = 5
_USUAL: Final = ("gemma3", "llama", "mistral", "phi3", "qwen3")

_FAMILIES: Final[Mapping[str, str]] = {
    "apertus": "apertus",
    "arcee": "near_llama",
    "bloom": "bloom",
    "cohere": "cohere",
    "cohere2": "cohere",
    "cwm": "near_llama",
    "deepseek_v2": "deepseek",
    "deepseek_v3": "deepseek",
    "ernie4_5": "near_llama",
    "exaone4": "exaone4",
    "falcon": "falcon",
    "falcon_h1": "falcon_h1",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4",
    "gemma4_unified_text": "gemma4",
    "glm": "glm",
    "glm4": "glm",
    "glm4_moe_lite": "deepseek",
    "gpt2": "gpt2",
    "gpt_bigcode": "gpt2",
    "gpt_neo": "gpt2",
    "gpt_neox": "gpt_neox",
    "gpt_oss": "gpt_oss",
    "gptj": "gptj",
    "granite": "granite",
    "granitemoe": "granite",
    "granitemoehybrid": "granite",
    "helium": "near_llama",
    "hunyuan_v1_dense": "near_llama",
    "lfm2": "lfm2",
    "llama": "llama",
    "ministral": "mistral",
    "ministral3": "mistral",
    "mistral": "mistral",
    "mixtral": "mixtures",
    "mpt": "bloom",
    "nemotron": "near_llama",
    "nemotron_h": "nemotron_h",
    "olmo": "olmo2",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmoe": "mixtures",
    "opt": "opt",
    "persimmon": "persimmon",
    "phi": "gptj",
    "phi3": "phi3",
    "phimoe": "phimoe",
    "qwen2": "qwen",
    "qwen2_moe": "mixtures",
    "qwen3": "qwen",
    "qwen3_moe": "mixtures",
    "qwen3_5_moe_text": "qwen3_5",
    "qwen3_5_text": "qwen3_5",
    "seed_oss": "near_llama",
    "smollm3": "llama",
    "stablelm": "layernorm",
    "starcoder2": "layernorm",
}
"""Model type to the module here that holds the function of the same name."""


def supported() -> tuple[str, ...]:
    """Return the model types that can be trained, sorted."""
    return tuple(sorted({*_FAMILIES, *INSIDE}))


def shape_of(config: Mapping[str, object]) -> ModelShape:
    """Return the shape that a ``config.json`` describes.

    Raises:
        ModelError: if the type is not supported or fields are missing or wrong (all are named).
    """
    refuse_unread(config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in supported():
        raise ModelError(_unsupported(model_type, config))
    fields = Fields(config)
    shape = reader(_read_as(model_type, fields))(fields)
    fields.finish(model_type)
    return shape


def _read_as(model_type: str, fields: Fields) -> str:
    """Return the type that a config is read as: as in transformers, types of layers make a Ministral.

    Inside a wrapper they do not.
    """
    return "ministral" if model_type == "mistral" and fields.has("layer_types") else model_type


def reader(model_type: str) -> Callable[[Fields], ModelShape]:
    """Return the function that reads configs of a supported type."""
    if model_type in INSIDE:
        return partial(wrapped, model_type)
    module = import_module(f"{__name__}.{_FAMILIES[model_type]}")
    return cast("Callable[[Fields], ModelShape]", getattr(module, model_type))


def _unsupported(model_type: object, config: Mapping[str, object]) -> str:
    if not isinstance(model_type, str):
        return f"The config.json has no model_type. {_supported('')}"
    kind = kind_of(model_type, config)
    detail = f" ({kind})" if kind else ""
    return f"Unsupported model type {short(model_type)}{detail}. {_supported(model_type)}"


def _supported(model_type: str) -> str:
    """Return a sentence with the supported types most like one, and how many others there are."""
    from difflib import get_close_matches

    known = supported()
    near = get_close_matches(model_type, known, n=_SHOWN, cutoff=0.6) or list(_USUAL)
    return f"Supported: {', '.join(near)} and {len(known) - len(near)} others (docs/models.md)."
