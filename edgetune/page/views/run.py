"""One run: its report, live, and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from starlette.responses import RedirectResponse, Response

from edgetune.page.asked import Asked, NotThereError
from edgetune.page.jobs import Job, newest
from edgetune.page.listing import Listed, signature
from edgetune.page.page import Page, Part, live, shown_with
from edgetune.page.rendering import link
from edgetune.report import body, summary

SAID_LINES = 12
"""Lines of a command that has no run folder yet."""


def run(page: Page, asked: Asked) -> Response:
    """Show a run, or how it is about to begin."""
    name = asked.one("run")
    return shown_with(_part(page, name), "run.html", name=name)


def run_live(page: Page, asked: Asked) -> Response:
    """Show it anew if something changed."""
    return live(asked, _part(page, asked.one("run")))


def act(page: Page, asked: Asked) -> Response:
    """Pause, stop or resume a run."""
    name, what = asked.one("run"), asked.one("do")
    match what:
        case "pause":
            page.actions.pause(name)
        case "stop":
            page.actions.stop(name)
        case "resume":
            page.actions.resume(name)
        case _:
            raise NotThereError(f"There is nothing to do that is called {what[:40]!r}.")
    return RedirectResponse(link("/run", run=name), 303)


def _part(page: Page, name: str) -> Part:
    """Return what is shown of a run."""
    job = newest(page.jobs.of(name), "train")
    try:
        found = page.listing.run(name)
    except NotThereError:
        if job is None:
            raise
        return _starting(job)
    return _shown(page, found, job)


def _starting(job: Job) -> Part:
    values = {
        "name": job.run,
        "said": job.said[-SAID_LINES:],
        "alive": job.alive,
        "error": job.error,
        "again": _again(job),
    }
    return Part(values, "_starting.html", lambda: values)


def _shown(page: Page, found: Listed, job: Job | None) -> Part:
    alive = job is not None and job.alive
    said = {
        "stopping": page.actions.is_stopping(found),
        "opening": alive and found.holder is None,
        "error": "" if job is None or job.started < found.changed else job.error,
    }

    def values() -> Mapping[str, Any]:
        report = page.readers.report(found)
        return {
            "run": found,
            "resumable": report.status.resumable and not alive,
            "summary": Markup(summary(report)),
            "body": Markup(body(report)),
            **said,
        }

    return Part((signature(found.path), found.holder, alive, said), "_run.html", values)


def _again(job: Job) -> str:
    """Return the address of the form with what this job was given."""
    given = [part[2:].partition("=") for part in job.arguments if part.startswith("--")]
    fields: dict[str, str] = {}
    for flag, _, value in given:
        name = flag.replace("-", "_")
        if name.startswith("no_") and not value:
            fields[name[3:]] = "no"
        elif name not in {"json", "output"}:
            fields[name] = value or "yes"
    return link("/new", name=job.run, **fields)
