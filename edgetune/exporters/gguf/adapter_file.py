"""A LoRA alone as llama.cpp's adapter file, for a GGUF file of its base that the user has.

llama.cpp adds ``alpha / rank * B A x`` with one alpha for the whole file; what a target has of its
own goes into B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from edgetune.adapters import LoadedAdapter
from edgetune.errors import UsageError
from edgetune.exporters.base import ExportRequest
from edgetune.exporters.gguf.compared import architecture_of
from edgetune.exporters.gguf.file import GgufFile, outgoing
from edgetune.exporters.gguf.layout import arranged, columns_arranged, parts
from edgetune.exporters.gguf.model_file import refuse_folder_options
from edgetune.exporters.gguf.rows import HeldRows, Reordered, Rows
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.shape import ATTENTION_ROLES, ModelShape
from edgetune.tensors.gguf.types import BY_NAME
from edgetune.tensors.gguf.writer import Value

_OF_LATENTS: Final = ATTENTION_ROLES - {"o"}
FORMATS: Final = {None: "F32", "f32": "F32", "f16": "F16"}


def adapter_file(request: ExportRequest) -> GgufFile:
    """Return the file of a request's adapter.

    Raises:
        UsageError: if llama.cpp has no such adapters or no such models, or an option has no
            meaning here.
    """
    refuse_folder_options(request)
    if request.quantize not in FORMATS:
        raise UsageError(
            f"An adapter's file is in f32 or f16, not {request.quantize}: it is small, and its "
            "numbers are added to those of the base."
        )
    adapter, model = request.adapter, request.model
    lora, kind = _lora(adapter, model.shape), BY_NAME[FORMATS[request.quantize]]
    _refuse_ignored(lora, model.shape)
    metadata = {
        "general.architecture": Value("string", architecture_of(model.shape).name),
        "general.type": Value("string", "adapter"),
        "adapter.type": Value("string", "lora"),
        "adapter.lora.alpha": Value("float32", lora.scale * lora.rank),
    }
    tensors = [outgoing(name, rows, kind) for name, rows in _tensors(adapter, model)]
    return GgufFile(label=f"LoRA-{kind.name}", metadata=metadata, tensors=tuple(tensors))


def _lora(adapter: LoadedAdapter, shape: ModelShape) -> Lora:
    if not isinstance(adapter.method, Lora):
        raise UsageError(
            f"llama.cpp has no {adapter.method.kind} (it has lora). Export the merged model, if it "
            "can be merged (without --adapter), or the adapter itself (--to peft)."
        )
    if adapter.method.modules_to_save:
        raise UsageError(
            "llama.cpp's adapters have no trained "
            f"{' and '.join(adapter.method.modules_to_save)}. Export the merged model (without "
            "--adapter), or the adapter itself (--to peft)."
        )
    if adapter.method.adapts_experts(shape):
        raise UsageError(
            "Adapters of experts are not written for llama.cpp. Export the merged model (without "
            "--adapter), or the adapter itself (--to peft)."
        )
    return adapter.method


def _refuse_ignored(lora: Lora, shape: ModelShape) -> None:
    """Refuse targets whose adapters llama.cpp reads and leaves out: what makes latents and heads."""
    if not architecture_of(shape).latents:
        return
    ignored = [x.linear.module for x in lora.select(shape) if x.linear.role in _OF_LATENTS]
    if ignored:
        raise UsageError(
            f"llama.cpp computes {', '.join(dict.fromkeys(ignored))} of {shape.family} models "
            "without adapters. Export the merged model (without --adapter), or train other targets "
            "(--targets o_proj,mlp)."
        )


def _tensors(adapter: LoadedAdapter, model: LocalModel) -> Iterator[tuple[str, Rows]]:
    lora, shape = _lora(adapter, model.shape), model.shape
    architecture, alpha = architecture_of(shape), lora.scale * lora.rank
    for target in lora.select(shape):
        block = shape.blocks[target.layer]
        own = lora.scale_of(target) * lora.rank_of(target) / alpha
        a = adapter.tensors[f"{target.module}.lora_A.weight"].astype(np.float32)
        b = adapter.tensors[f"{target.module}.lora_B.weight"].astype(np.float32) * np.float32(own)
        inputs = columns_arranged(HeldRows(a), target.linear, block)
        outputs = arranged(HeldRows(b), target.linear, target.layer, shape, architecture)
        for part, rows in parts(shape, block, target.linear):
            name = f"blk.{target.layer}.{part}.weight"
            yield f"{name}.lora_a", inputs
            yield f"{name}.lora_b", outputs if rows is None else Reordered(outputs, rows)
