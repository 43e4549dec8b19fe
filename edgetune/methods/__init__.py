"""The methods, by name. Entries import on use, so that naming one costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.methods.base import AdapterTensor, Method, initial_value

__all__ = [
    "METHODS",
    "AdapterTensor",
    "Method",
    "build",
    "initial_value",
    "known_settings",
    "method_class",
]

METHODS = {
    "lora": "edgetune.methods.lora:Lora",
    "dora": "edgetune.methods.dora:Dora",
    "dylora": "edgetune.methods.dylora:DyLora",
    "lora-fa": "edgetune.methods.lora_fa:LoraFa",
    "vera": "edgetune.methods.vera:Vera",
    "adapter": "edgetune.methods.bottleneck:Bottleneck",
    "prompt": "edgetune.methods.prompt:Prompt",
    "prefix": "edgetune.methods.prefix:Prefix",
    "llama-adapter": "edgetune.methods.llama_adapter:LlamaAdapter",
    "mam": "edgetune.methods.mam:Mam",
    "bitfit": "edgetune.methods.bitfit:BitFit",
    "ia3": "edgetune.methods.ia3:Ia3",
    "norm": "edgetune.methods.norm:NormTuning",
    "full": "edgetune.methods.full:Full",
    "intrinsic": "edgetune.methods.intrinsic:Intrinsic",
}


def method_class(kind: str) -> type[Method]:
    """Return the spec class of a method.

    Raises:
        UsageError: if there is no such method, naming those there are.
    """
    if kind not in METHODS:
        raise UsageError(f"Unsupported method {short(kind)}. Supported: {', '.join(METHODS)}.")
    module, _, name = METHODS[kind].partition(":")
    found: type[Method] = getattr(import_module(module), name)
    return found


def known_settings(kind: str) -> tuple[str, ...]:
    """Return the names of a method's settings."""
    return tuple(item.name for item in fields(method_class(kind)))  # type: ignore[arg-type]


def build(kind: str, given: Mapping[str, Any]) -> Method:
    """Return a method with the given settings; what is not given keeps its default.

    Raises:
        UsageError: if a setting is not one of this method's.
    """
    known = known_settings(kind)
    strange = [name for name in given if name not in known]
    if strange:
        raise UsageError(
            f"The method {kind} has no setting {', '.join(strange)}. It has: {', '.join(known)}."
        )
    return method_class(kind)(**given)
