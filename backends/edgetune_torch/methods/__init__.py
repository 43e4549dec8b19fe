"""The methods that this backend can run, by the kind of their spec."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from torch.nn import Parameter

from edgetune.errors import UsageError
from edgetune.methods.base import Method
from edgetune.shape import ModelShape
from edgetune_torch.adaptation import Adaptation

ADAPTATIONS = {"lora": "edgetune_torch.methods.lora:LoraAdaptation"}


def adapt(method: Method, shape: ModelShape, parameters: Mapping[str, Parameter]) -> Adaptation:
    """Return the adaptation of a method.

    Raises:
        UsageError: if this backend does not have the method.
    """
    if method.kind not in ADAPTATIONS:
        supported = ", ".join(ADAPTATIONS)
        raise UsageError(f"Unsupported method {method.kind!r} on torch. Supported: {supported}.")
    module, _, name = ADAPTATIONS[method.kind].partition(":")
    adaptation: Adaptation = getattr(import_module(module), name)(method, shape, parameters)
    return adaptation
