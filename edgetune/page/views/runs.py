"""The list of runs."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from edgetune.page.asked import Asked
from edgetune.page.page import Page, live, shown, version_of


def runs(page: Page, asked: Asked) -> Response:
    """Show the runs."""
    state, values = _state(page)
    return shown("runs.html", version=version_of(state), **values)


def runs_live(page: Page, asked: Asked) -> Response:
    """Show the table anew if something in it changed."""
    state, values = _state(page)
    return live(asked, state, "_runs.html", **values)


def _state(page: Page) -> tuple[object, dict[str, Any]]:
    found = page.listing.runs()
    names = {run.name for run in found}
    starting = [job for job in page.jobs.all() if job.kind == "train" and job.run not in names]
    begun = {job.run: job for job in reversed(starting) if job.alive}
    stopping = {run.name for run in found if page.actions.is_stopping(run)}
    state = (found, sorted(begun), sorted(stopping))
    return state, {
        "runs": found,
        "starting": list(begun.values()),
        "stopping": stopping,
        "folder": str(page.folder),
    }
