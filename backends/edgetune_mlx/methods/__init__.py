"""The methods that this backend can run, by the kind of their spec."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import mlx.core as mx

from edgetune.errors import UsageError
from edgetune.methods.base import Method
from edgetune.shape import ModelShape
from edgetune_mlx.adaptation import Adapted

ADAPTATIONS = {
    "lora": "edgetune_mlx.methods.lora:LoraAdaptation",
    "dora": "edgetune_mlx.methods.dora:DoraAdaptation",
    "dylora": "edgetune_mlx.methods.lora:DyLoraAdaptation",
    "adapter": "edgetune_mlx.methods.bottleneck:BottleneckAdaptation",
    "prompt": "edgetune_mlx.methods.prompt:PromptAdaptation",
    "prefix": "edgetune_mlx.methods.prefix:PrefixAdaptation",
    "llama-adapter": "edgetune_mlx.methods.llama_adapter:LlamaAdapterAdaptation",
    "mam": "edgetune_mlx.methods.mam:MamAdaptation",
    "bitfit": "edgetune_mlx.methods.bitfit:BitFitAdaptation",
    "ia3": "edgetune_mlx.methods.ia3:Ia3Adaptation",
    "norm": "edgetune_mlx.methods.norm:NormAdaptation",
    "full": "edgetune_mlx.methods.full:FullAdaptation",
}


def adapt(method: Method, shape: ModelShape, parameters: Mapping[str, mx.array]) -> Adapted:
    """Return the adaptation of a method.

    Raises:
        UsageError: if this backend does not have the method.
    """
    if method.kind not in ADAPTATIONS:
        supported = ", ".join(ADAPTATIONS)
        raise UsageError(f"Unsupported method {method.kind!r} on mlx. Supported: {supported}.")
    module, _, name = ADAPTATIONS[method.kind].partition(":")
    adaptation: Adapted = getattr(import_module(module), name)(method, shape, parameters)
    return adaptation
