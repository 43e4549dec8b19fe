"""The methods, by name. Entries import on use, so that naming one costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from edgetune.errors import UsageError
from edgetune.methods.base import AdapterTensor, Method, initial_value

__all__ = ["METHODS", "AdapterTensor", "Method", "build", "initial_value", "method_class"]

METHODS = {"lora": "edgetune.methods.lora:Lora"}


def method_class(kind: str) -> type[Method]:
    """Return the spec class of a method.

    Raises:
        UsageError: if there is no such method, naming those there are.
    """
    if kind not in METHODS:
        raise UsageError(f"Unsupported method {kind!r}. Supported: {', '.join(METHODS)}.")
    module, _, name = METHODS[kind].partition(":")
    found: type[Method] = getattr(import_module(module), name)
    return found


def build(kind: str, settings: Mapping[str, Any]) -> Method:
    """Return a method with the given settings; what is not given keeps its default.

    Raises:
        UsageError: if a setting is not one of this method's.
    """
    cls = method_class(kind)
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    strange = [name for name in settings if name not in known]
    if strange:
        raise UsageError(
            f"The method {kind} has no setting {', '.join(strange)}. It has: {', '.join(known)}."
        )
    return cls(**settings)
