"""Exports of a run: where to, how far, and what the check said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from starlette.responses import RedirectResponse, Response

from edgetune.errors import UsageError
from edgetune.files import partial_path
from edgetune.page.asked import Asked
from edgetune.page.jobs import Job
from edgetune.page.page import Page, Part, live, shown_with
from edgetune.page.rendering import link

FORMATS: Final = {
    "peft": "the adapter alone, for PEFT and transformers",
    "hf": "the whole model with the adapter merged in, for transformers and vLLM",
    "mlx": "model and adapter in one folder, for mlx-lm",
    "gguf": "one file with the merged model, for llama.cpp",
    "ollama": "a GGUF file and what Ollama needs beside it",
    "lmstudio": "a GGUF file where LM Studio looks for it",
}


def export(page: Page, asked: Asked) -> Response:
    """Show the form and the exports of a run."""
    name = asked.one("run")
    return _form(page, name, {"to": asked.one("to", "peft"), "output": "", "quantize": ""}, "")


def export_live(page: Page, asked: Asked) -> Response:
    """Show the exports anew if something changed."""
    return live(asked, _part(page, asked.one("run")))


def begin(page: Page, asked: Asked) -> Response:
    """Start an export."""
    name = asked.one("run")
    given = {key: asked.one(key, "") for key in ("to", "output", "quantize")}
    try:
        page.actions.export(name, **given)
    except UsageError as error:
        return _form(page, name, given, str(error), status=400)
    return RedirectResponse(link("/export", run=name, to=given["to"]), 303)


def _form(page: Page, name: str, given: dict[str, str], error: str, status: int = 200) -> Response:
    from edgetune.exporters.gguf.mixture import MIXTURES  # brings all adapters

    run = page.listing.run(name)
    return shown_with(
        _part(page, run.name),
        "export.html",
        status=status,
        run=run,
        name=run.name,
        given=given,
        error=error,
        formats=FORMATS,
        quantizations=("q8", "q4", *MIXTURES),
        suggested=str(Path("exports") / Path(run.name).name),
    )


def _part(page: Page, name: str) -> Part:
    found = [_export(job) for job in page.jobs.of(name) if job.kind == "export"]
    return Part(found, "_exports.html", lambda: {"exports": found})


def _export(job: Job) -> dict[str, Any]:
    given = dict(part[2:].split("=", 1) for part in job.arguments if "=" in part)
    output, alive = Path(given.get("output", "")), job.alive
    return {
        "to": given.get("to", ""),
        "output": str(output),
        "alive": alive,
        "written": _written(partial_path(output)) if alive else 0,
        "seconds": round(time.time() - job.started) if alive else 0,
        "result": job.result if not alive else {},
        "error": job.error,
    }


def _written(path: Path) -> int:
    """Return the bytes of a file or folder that is being written."""
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:
        return 0
