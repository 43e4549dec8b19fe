"""A run as one GGUF file, in a folder or alone."""

from __future__ import annotations

from edgetune.exporters.base import Exported, ExportRequest
from edgetune.exporters.folder import folder_bytes, new_file, new_folder
from edgetune.exporters.gguf.adapter_file import adapter_file
from edgetune.exporters.gguf.file import GgufFile
from edgetune.exporters.gguf.mixture import DEFAULTS
from edgetune.exporters.gguf.model_file import merged_file


def export_gguf(request: ExportRequest) -> Exported:
    """Write one GGUF file, to ``output`` itself if that ends in ``.gguf``, else into that folder.

    Raises:
        UsageError: if the method cannot be merged (or, alone, loaded), llama.cpp lacks what the
            model needs, an option has no meaning here, or the output cannot be made.
        CheckFailedError: if a number is not finite in the file's format.
    """
    found = adapter_file(request) if request.alone else merged_file(request, DEFAULTS["gguf"])
    if request.output.suffix != ".gguf":
        return write_folder(request, found, found.filename(request.output.name))
    with new_file(request.output, found.nbytes) as path:
        found.write(path)
        request.verify(path)
        nbytes = path.stat().st_size
    folder = request.output.parent
    return Exported(folder=folder, file=request.output, nbytes=nbytes, notes=found.notes)


def write_folder(request: ExportRequest, found: GgufFile, name: str, **texts: str) -> Exported:
    """Write a new folder with a GGUF file, whose path in it is ``name``, and files of text."""
    with new_folder(request.output, found.nbytes) as folder:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        found.write(folder / name)
        for text_name, text in texts.items():
            (folder / text_name).write_text(text, "utf-8")
        request.verify(folder / name)
        nbytes = folder_bytes(folder)
    file = request.output / name
    return Exported(folder=request.output, file=file, nbytes=nbytes, notes=found.notes)
