"""What an exporter is, and which there are; each is one file beside this, imported on use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from edgetune.adapters import LoadedAdapter
from edgetune.errors import UsageError
from edgetune.model import LocalModel
from edgetune.model.config import FloatName

EXPORTERS: Final[Mapping[str, str]] = {
    "peft": "edgetune.exporters.peft:export_peft",
    "hf": "edgetune.exporters.hf:export_hf",
    "mlx": "edgetune.exporters.mlx:export_mlx",
    "gguf": "edgetune.exporters.gguf:export_gguf",
    "ollama": "edgetune.exporters.ollama:export_ollama",
    "lmstudio": "edgetune.exporters.lmstudio:export_lmstudio",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to hand over and where to; options of None are the exporter's to choose."""

    adapter: LoadedAdapter
    model: LocalModel
    output: Path
    dtype: FloatName | None = None
    """Number format of the merged weights; by default each keeps that of the base."""
    shard_bytes: int | None = None
    """Bytes of tensors in one file at most, unless a single tensor is larger."""
    quantize: str | None = None
    """What a GGUF file stores its matrices in."""
    alone: bool = False
    """The adapter's own GGUF file, not the merged model's."""
    context: int | None = None
    """The longest row of the training, in tokens."""
    verify: Callable[[Path], None] = lambda _: None
    """Called with what was written before it is at its place; what it raises keeps it from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The folder that was written, or the one file in it, and its bytes."""

    folder: Path
    nbytes: int
    file: Path | None = None
    notes: tuple[str, ...] = ()
    """What the user should know of it, or type next; a sentence each."""

    @property
    def path(self) -> Path:
        """What was written."""
        return self.file or self.folder


Exporter = Callable[[ExportRequest], Exported]


def export(name: str, request: ExportRequest) -> Exported:
    """Write what is asked for; the output folder is there when it is whole.

    Raises:
        UsageError: if there is no such exporter, if an option has no meaning for it, or if the
            output folder cannot be made.
        CheckFailedError: if a merged weight cannot be written in the output's number format.
    """
    if name not in EXPORTERS:
        raise UsageError(f"Unsupported export {name!r}. Supported: {', '.join(EXPORTERS)}.")
    module, _, function = EXPORTERS[name].partition(":")
    exporter: Exporter = getattr(import_module(module), function)
    return exporter(request)
