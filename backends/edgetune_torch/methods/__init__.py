"""The methods that this backend can run, by the kind of their spec."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from torch.nn import Parameter

from edgetune.errors import UsageError
from edgetune.methods.base import Method
from edgetune.shape import ModelShape
from edgetune_torch.adaptation import Adapted

ADAPTATIONS = {
    "lora": "edgetune_torch.methods.lora:LoraAdaptation",
    "dora": "edgetune_torch.methods.dora:DoraAdaptation",
    "dylora": "edgetune_torch.methods.lora:DyLoraAdaptation",
    "adapter": "edgetune_torch.methods.bottleneck:BottleneckAdaptation",
    "prompt": "edgetune_torch.methods.prompt:PromptAdaptation",
    "prefix": "edgetune_torch.methods.prefix:PrefixAdaptation",
    "llama-adapter": "edgetune_torch.methods.llama_adapter:LlamaAdapterAdaptation",
    "mam": "edgetune_torch.methods.mam:MamAdaptation",
    "bitfit": "edgetune_torch.methods.bitfit:BitFitAdaptation",
    "ia3": "edgetune_torch.methods.ia3:Ia3Adaptation",
    "norm": "edgetune_torch.methods.norm:NormAdaptation",
    "full": "edgetune_torch.methods.full:FullAdaptation",
}


def adapt(method: Method, shape: ModelShape, parameters: Mapping[str, Parameter]) -> Adapted:
    """Return the adaptation of a method.

    Raises:
        UsageError: if this backend does not have the method.
    """
    if method.kind not in ADAPTATIONS:
        supported = ", ".join(ADAPTATIONS)
        raise UsageError(f"Unsupported method {method.kind!r} on torch. Supported: {supported}.")
    module, _, name = ADAPTATIONS[method.kind].partition(":")
    adaptation: Adapted = getattr(import_module(module), name)(method, shape, parameters)
    return adaptation
