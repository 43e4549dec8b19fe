"""The list of runs."""

from __future__ import annotations

from starlette.responses import Response

from edgetune.page.asked import Asked
from edgetune.page.page import Page, Part, live, shown_with


def runs(page: Page, asked: Asked) -> Response:
    """Show the runs."""
    return shown_with(_part(page), "runs.html")


def runs_live(page: Page, asked: Asked) -> Response:
    """Show the table anew if something in it changed."""
    return live(asked, _part(page))


def _part(page: Page) -> Part:
    found = page.listing.runs()
    names = {run.name for run in found}
    starting = [job for job in page.jobs.all() if job.kind == "train" and job.run not in names]
    begun = {job.run: job for job in reversed(starting) if job.alive}
    stopping = {run.name for run in found if page.actions.is_stopping(run)}
    values = {
        "runs": found,
        "starting": list(begun.values()),
        "stopping": stopping,
        "folder": str(page.folder),
        "left_out": page.listing.left_out,
    }
    state = (
        [(run.name, run.changed, run.holder) for run in found],
        sorted(begun),
        sorted(stopping),
    )
    return Part(state, "_runs.html", lambda: values)
