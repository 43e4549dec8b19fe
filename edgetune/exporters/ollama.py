"""What ``ollama create`` takes: one quantized GGUF file, and a Modelfile that names it.

Ollama neither merges adapters nor quantizes any more (0.34.1), and takes the chat template from the
file, so that the Modelfile says only what the file does not: where to stop, and how much context.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.exporters.base import Exported, ExportRequest
from edgetune.exporters.gguf.export import write_folder
from edgetune.exporters.gguf.mixture import DEFAULTS
from edgetune.exporters.gguf.model_file import merged_file
from edgetune.exporters.gguf.tokenizer import TokenizerFacts

LEAST_VERSION: Final = "0.34.1"
"""The first that is known to take the chat template from the file."""
_PROGRAM: Final = "ollama"
_USUAL_CONTEXT: Final = 4096
"""What Ollama gives a model if nobody says otherwise."""


def export_ollama(request: ExportRequest) -> Exported:
    """Write a folder with a GGUF file (Q4_K_M by default) and a Modelfile.

    Raises:
        UsageError: if the method cannot be merged, or llama.cpp lacks what the model needs.
        CheckFailedError: if a merged weight is no finite number in the file's format.
    """
    merged = merged_file(request, DEFAULTS["ollama"])
    name = merged.filename(request.output.name)
    stops = TokenizerFacts.read(request.model.folder).end_texts
    context = min(max(_USUAL_CONTEXT, request.context or 0), merged.context)
    text = modelfile(name, stops, context)
    written = write_folder(request, merged, name, Modelfile=text)
    next_step = (
        f"To run it in Ollama {LEAST_VERSION} or newer: {shlex.join(_command(request.output))}"
    )
    return replace(written, notes=(*written.notes, next_step))


def require_ollama() -> None:
    """Find the program.

    Raises:
        UsageError: if it is not here.
    """
    if shutil.which(_PROGRAM) is None:
        raise UsageError(
            "--create runs `ollama`, which is not on the PATH. Leave it out: the command to type "
            "is shown at the end."
        )


def create_in_ollama(folder: Path) -> str:
    """Let Ollama take an exported folder into its store, and return how it is run.

    Raises:
        UsageError: if Ollama does not take it; the folder stays.
    """
    command = _command(folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = short((done.stderr or done.stdout).strip().rpartition("\n")[2])
        raise UsageError(f"`{shlex.join(command)}` failed: {told}. The files are in {folder}.")
    return f"Created in Ollama. To run it: ollama run {folder.name}"


def _command(folder: Path) -> list[str]:
    return [_PROGRAM, "create", folder.name, "-f", str(folder / "Modelfile")]


def modelfile(name: str, stops: Sequence[str], context: int) -> str:
    """Return the Modelfile of a GGUF file beside it.

    >>> print(modelfile("home-Q4_K_M.gguf", ["<|im_end|>"], 4096), end="")
    FROM ./home-Q4_K_M.gguf
    PARAMETER num_ctx 4096
    PARAMETER stop "<|im_end|>"
    """
    return "\n".join(_lines(name, stops, context)) + "\n"


def _lines(name: str, stops: Sequence[str], context: int) -> Iterator[str]:
    yield f"FROM ./{name}"
    yield f"PARAMETER num_ctx {context}"
    for stop in stops:
        yield f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}"
