"""LM Studio's layout: ``models/<publisher>/<model>/<file>.gguf``. It cannot load a LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from edgetune.errors import UsageError
from edgetune.exporters.base import Exported, ExportRequest
from edgetune.exporters.gguf.export import write_folder
from edgetune.exporters.gguf.mixture import DEFAULTS
from edgetune.exporters.gguf.model_file import merged_file

PUBLISHER: Final = "edgetune"
_MODELS: Final = (".lmstudio", "models")


def export_lmstudio(request: ExportRequest) -> Exported:
    """Write a GGUF file (Q4_K_M by default) where LM Studio finds it.

    An output in LM Studio's own folder is the model's: ``~/.lmstudio/models/ME/MODEL``. Any other
    stands for that folder, and has a publisher's and a model's in it.

    Raises:
        UsageError: if the method cannot be merged, llama.cpp lacks what the model needs, or the
            output is in LM Studio's folder but not two folders below it.
        CheckFailedError: if a merged weight is no finite number in the file's format.
    """
    merged = merged_file(request, DEFAULTS["lmstudio"])
    name = request.output.name
    file, below = merged.filename(name), depth(request.output)
    if below is None:
        written = write_folder(request, merged, f"{PUBLISHER}/{name}/{file}")
        place = "/".join(("~", *_MODELS))
        note = f"Copy {request.output / PUBLISHER} into {place} for LM Studio to show the model"
        return replace(written, notes=(*written.notes, note))
    if below != 2:
        raise UsageError(
            f"LM Studio finds models two folders below its own, and {request.output} is {below}. "
            f"Take --output ~/{'/'.join(_MODELS)}/{PUBLISHER}/{name}."
        )
    return write_folder(request, merged, file)


def depth(output: Path) -> int | None:
    """Return how many folders a place is below LM Studio's models; None if it is elsewhere.

    >>> depth(Path("/home/me/.lmstudio/models/me/home")), depth(Path("/tmp/home"))
    (2, None)
    """
    parts = output.expanduser().absolute().parts
    places = [i for i in range(len(parts) - 1) if parts[i : i + 2] == _MODELS]
    return len(parts) - places[-1] - 2 if places else None
