"""The merged model as one GGUF file, streamed: a run of rows is merged, quantized and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import CheckFailedError, UsageError
from edgetune.exporters.base import Exported, ExportRequest
from edgetune.exporters.folder import folder_bytes, new_file, new_folder
from edgetune.exporters.gguf.architectures import Architecture, architecture_of
from edgetune.exporters.gguf.layout import file_tensors
from edgetune.exporters.gguf.metadata import context_of, model_metadata
from edgetune.exporters.gguf.mixture import DEFAULTS, MIXTURES, Quantization, tensor_type
from edgetune.exporters.gguf.rows import Rows
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import merge_of
from edgetune.shape import ModelShape
from edgetune.tensors.gguf.quantize import quantized
from edgetune.tensors.gguf.types import TensorType
from edgetune.tensors.gguf.writer import Metadata, OutgoingBlocks, Value, file_bytes, write_gguf
from edgetune.tensors.writer import row_spans

_QUANTIZATION_VERSION: Final = 2


def export_gguf(request: ExportRequest) -> Exported:
    """Write one GGUF file, to ``output`` itself if that ends in ``.gguf``, else into that folder.

    Raises:
        UsageError: if the method cannot be merged, llama.cpp lacks what the model needs, an
            option has no meaning here, or the output cannot be made.
        CheckFailedError: if a merged weight is no finite number in the file's format.
    """
    merged = MergedFile.of(request, DEFAULTS["gguf"])
    if request.output.suffix != ".gguf":
        return write_folder(request, merged, merged.filename(request.output.name))
    with new_file(request.output, merged.nbytes) as path:
        merged.write(path)
        request.verify(path)
        nbytes = path.stat().st_size
    folder = request.output.parent
    return Exported(folder=folder, file=request.output, nbytes=nbytes, notes=merged.notes)


def write_folder(request: ExportRequest, merged: MergedFile, name: str, **texts: str) -> Exported:
    """Write a new folder with a GGUF file, whose path in it is ``name``, and files of text."""
    with new_folder(request.output, merged.nbytes) as folder:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        merged.write(folder / name)
        for text_name, text in texts.items():
            (folder / text_name).write_text(text, "utf-8")
        request.verify(folder / name)
        nbytes = folder_bytes(folder)
    file = request.output / name
    return Exported(folder=request.output, file=file, nbytes=nbytes, notes=merged.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedFile:
    """A GGUF file about to be written."""

    quantization: Quantization
    metadata: Metadata
    tensors: tuple[OutgoingBlocks, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, request: ExportRequest, default: Quantization) -> MergedFile:
        """Return what a request asks for; no tensor is read yet.

        Raises:
            UsageError: if the method cannot be merged, llama.cpp lacks what the model needs, or
                an option has no meaning here.
        """
        quantization = _quantization(request, default)
        model = request.model
        architecture = architecture_of(model.shape)
        rows = file_tensors(model, merge_of(request.adapter, model), architecture)
        metadata = {
            "general.architecture": Value("string", architecture.name),
            "general.type": Value("string", "model"),
            "general.name": Value("string", Path(model.ref).name),
            "general.file_type": Value("uint32", MIXTURES[quantization].file_type),
            "general.quantization_version": Value("uint32", _QUANTIZATION_VERSION),
            **model_metadata(model.shape, architecture),
            **TokenizerFacts.read(model.folder).metadata(model.shape.vocabulary),
        }
        tensors = [
            _outgoing(name, each, tensor_type(name, each.shape, model.shape, quantization))
            for name, each in rows.items()
        ]
        return cls(
            quantization=quantization,
            metadata=metadata,
            tensors=tuple(tensors),
            notes=tuple(_notes(model.shape, architecture)),
        )

    def filename(self, name: str) -> str:
        """Return what a file of this model is called, as is usual: ``name-Q4_K_M.gguf``."""
        return f"{name}-{self.quantization.upper()}.gguf"

    @property
    def context(self) -> int:
        """The longest context of the model in llama.cpp."""
        name = self.metadata["general.architecture"].content
        return int(self.metadata[f"{name}.context_length"].content)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return file_bytes(self.metadata, self.tensors)

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            CheckFailedError: if a merged weight is no finite number in the file's format.
        """
        write_gguf(path, self.metadata, self.tensors)


def _quantization(request: ExportRequest, default: Quantization) -> Quantization:
    if request.dtype is not None or request.shard_bytes is not None:
        raise UsageError(
            "--dtype and --shard-size are for folders; a GGUF file is one file in the formats that "
            "--quantize names."
        )
    wanted = request.quantize or default
    if wanted not in MIXTURES:
        raise UsageError(f"Unsupported --quantize {wanted}. Supported: {', '.join(MIXTURES)}.")
    return cast("Quantization", wanted)


def _notes(shape: ModelShape, architecture: Architecture) -> Iterator[str]:
    context = context_of(shape, architecture)
    if context < shape.max_context:
        yield (
            f"llama.cpp has no attention windows for {architecture.name}: the file says a context "
            f"of {context:,} tokens, the model's window, of the model's {shape.max_context:,}"
        )


def _outgoing(name: str, rows: Rows, kind: TensorType) -> OutgoingBlocks:
    chunks = partial(_chunks, name, rows, kind)
    return OutgoingBlocks(name=name, type=kind, shape=rows.shape, chunks=chunks)


def _chunks(name: str, rows: Rows, kind: TensorType) -> Iterator[NDArray[np.uint8]]:
    for start, stop in row_spans(rows.shape):
        values = rows.read(start, stop)
        _require_finite(name, values, kind)
        yield quantized(values if values.ndim > 1 else values[None], kind)


def _require_finite(name: str, values: NDArray[np.float32], kind: TensorType) -> None:
    largest = 65504.0 if kind.name == "F16" else float(np.finfo(np.float32).max)
    if values.size and not (values.min() >= -largest and values.max() <= largest):
        raise CheckFailedError(
            f"{name} has values that are not finite in {kind.name}. Export with --quantize bf16; if "
            "that fails too, the base model or the adapter is damaged."
        )
