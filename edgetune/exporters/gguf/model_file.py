"""The merged model as one GGUF file, streamed: a run of rows is merged, quantized and written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, cast

from edgetune.errors import UsageError
from edgetune.exporters.base import ExportRequest
from edgetune.exporters.gguf import scan, streams
from edgetune.exporters.gguf.activation import activation_metadata
from edgetune.exporters.gguf.architectures import Architecture
from edgetune.exporters.gguf.compared import architecture_of
from edgetune.exporters.gguf.file import GgufFile, outgoing
from edgetune.exporters.gguf.layout import file_tensors
from edgetune.exporters.gguf.metadata import context_of, model_metadata, rounding
from edgetune.exporters.gguf.mixture import MIXTURES, Quantization, tensor_type
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import Merge, merge_of
from edgetune.model import LocalModel
from edgetune.model.gguf_names import EMBEDDING, HEAD
from edgetune.shape import ModelShape
from edgetune.tensors.gguf.writer import Value

_QUANTIZATION_VERSION: Final = 2


def merged_file(request: ExportRequest, default: Quantization) -> GgufFile:
    """Return the file that a request asks for; no tensor is read yet.

    Raises:
        UsageError: if the method cannot be merged, llama.cpp lacks what the model needs, or an
            option has no meaning here.
    """
    quantization = _quantization(request, default)
    return model_file(request.model, merge_of(request.adapter, request.model), quantization)


def model_file(
    model: LocalModel, merge: Merge, quantization: Quantization, facts: TokenizerFacts | None = None
) -> GgufFile:
    """Return a model's file, changed by a merge; its tokenizer is read unless it was.

    Raises:
        UsageError: if llama.cpp lacks what the model needs.
    """
    architecture = architecture_of(model.shape)
    facts = facts or TokenizerFacts.read(model.folder)
    metadata = {
        "general.architecture": Value("string", architecture.name),
        "general.type": Value("string", "model"),
        "general.name": Value("string", Path(model.ref).name),
        "general.file_type": Value("uint32", MIXTURES[quantization].file_type),
        "general.quantization_version": Value("uint32", _QUANTIZATION_VERSION),
        **model_metadata(model.shape, architecture),
        **activation_metadata(model),
        **facts.metadata(model.shape.vocabulary),
    }
    found = file_tensors(model, merge, architecture)
    output = HEAD if HEAD in found else EMBEDDING
    type_of = partial(tensor_type, shape=model.shape, quantization=quantization, output=output)
    tensors = [outgoing(name, rows, type_of(name, rows.shape)) for name, rows in found.items()]
    return GgufFile(
        label=quantization.upper(),
        metadata=metadata,
        tensors=tuple(tensors),
        notes=tuple(_notes(model.shape, architecture)),
    )


def _quantization(request: ExportRequest, default: Quantization) -> Quantization:
    refuse_folder_options(request)
    wanted = request.quantize or default
    if wanted not in MIXTURES:
        raise UsageError(f"Unsupported --quantize {wanted}. Supported: {', '.join(MIXTURES)}.")
    return cast("Quantization", wanted)


def refuse_folder_options(request: ExportRequest) -> None:
    """Refuse options that have no meaning for a GGUF file.

    Raises:
        UsageError: if one is given.
    """
    if request.dtype is not None or request.shard_bytes is not None:
        raise UsageError(
            "--dtype and --shard-size are for folders; a GGUF file is one file in the formats that "
            "--quantize names."
        )


def _notes(shape: ModelShape, architecture: Architecture) -> Iterator[str]:
    context = context_of(shape, architecture)
    if context < shape.max_context:
        yield (
            f"llama.cpp has no attention windows for {architecture.name}: the file says a context "
            f"of {context:,} tokens, the model's window, of the model's {shape.max_context:,}"
        )
    for rule in shape.rotaries if architecture.rounded_bounds else ():
        if (said := rounding(rule)) is not None:
            yield f"llama.cpp rounds the bounds of this model's rotation (YaRN) for all who run it: {said}"
    least = max((mixer.least_step for mixer in scan.mixers(shape)), default=0.0)
    if least:
        yield f"llama.cpp does not bound the steps of Mamba layers from below, the model does ({least:g})"
    if (said := streams.rough_gates(shape)) is not None:
        yield said
    if shape.tower:
        yield "what sees or hears in the base's file is left out; text does not reach it"
