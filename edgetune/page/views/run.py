"""One run: its report, live, and what can be done with it."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from starlette.responses import RedirectResponse, Response

from edgetune.page.asked import Asked, NotThereError
from edgetune.page.jobs import Job, newest
from edgetune.page.listing import Listed
from edgetune.page.page import Page, live, shown, version_of
from edgetune.page.rendering import link
from edgetune.report import body, summary

SAID_LINES = 12
"""Lines of a command that has no run folder yet."""


def run(page: Page, asked: Asked) -> Response:
    """Show a run, or how it is about to begin."""
    name = asked.one("run")
    state, template, values = _state(page, name)
    version = version_of(state)
    return shown("run.html", version=version, inner=template, name=name, **values)


def run_live(page: Page, asked: Asked) -> Response:
    """Show it anew if something changed."""
    name = asked.one("run")
    state, template, values = _state(page, name)
    return live(asked, state, template, name=name, **values)


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


def _state(page: Page, name: str) -> tuple[object, str, dict[str, Any]]:
    """Return what decides a run's page, its template and its values."""
    job = newest(page.jobs.of(name), "train")
    try:
        found = page.listing.run(name)
    except NotThereError:
        if job is None:
            raise
        return _starting(job)
    return _shown(page, found, job)


def _starting(job: Job) -> tuple[object, str, dict[str, Any]]:
    said, alive = job.said[-SAID_LINES:], job.alive
    values = {
        "said": said, "alive": alive, "error": job.error, "again": _again(job),
    }  # fmt: skip
    return values, "_starting.html", values


def _shown(page: Page, found: Listed, job: Job | None) -> tuple[object, str, dict[str, Any]]:
    alive = job is not None and job.alive
    values: dict[str, Any] = {
        "run": found,
        "stopping": page.actions.is_stopping(found),
        "opening": alive and found.holder is None,
        "error": "" if job is None or job.started < found.changed else job.error,
    }
    report = page.readers.report(found)
    values["resumable"] = report.status.resumable and not alive
    parts = {"summary": Markup(summary(report)), "body": Markup(body(report))}
    return (found, values), "_run.html", {**values, **parts}


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
