"""A report as one page: everything in one file, no script, no request."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from edgetune.report.contents import Report
from edgetune.report.markup import DASH, bullets, text
from edgetune.report.sections import Section, sections
from edgetune.report.tiles import status_line, tiles
from edgetune.version import __version__

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser lets the page do: apply its own style, and nothing else."""


def render(report: Report) -> str:
    """Return a report as a whole HTML page."""
    name, parts = text(report.name, 120), sections(report)
    links = "".join(f'<li><a href="#{one.key}">{one.title}</a></li>' for one in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{name} {DASH} edgetune</title><style>{style()}</style></head>"
        f'<body class="report"><header><p class="brand">edgetune report</p><h1>{name}</h1>'
        f"{summary(report)}</header>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
        f"<main>{_headed(parts)}</main>"
        f"<footer><p>Written by edgetune {text(__version__)}. This file holds everything that it "
        "shows; it loads nothing and runs nothing.</p></footer></body></html>\n"
    )


def document(brand: str, title: str, content: str) -> str:
    """Return a whole page of something else than one run; ``content`` is HTML already."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{text(title)}</title><style>{style()}</style></head>"
        f'<body class="report"><header><p class="brand">{text(brand)}</p>'
        f"<h1>{text(title)}</h1></header><main>{content}</main></body></html>\n"
    )


def summary(report: Report) -> str:
    """Return where a run stands and its few most important figures, as a fragment."""
    problems = bullets(text(problem) for problem in report.problems)
    return (
        status_line(report)
        + (f'<div class="problems">{problems}</div>' if problems else "")
        + (tiles(report))
    )


def body(report: Report, prefix: str = "") -> str:
    """Return the sections as a fragment; ``prefix`` begins their ids, where several are shown."""
    return _headed(sections(report), prefix)


def _headed(parts: Iterable[Section], prefix: str = "") -> str:
    return "".join(
        f'<section id="{prefix}{one.key}" aria-labelledby="{prefix}{one.key}-title">'
        f'<h2 id="{prefix}{one.key}-title">{one.title}</h2>{one.html}</section>'
        for one in parts
    )


@cache
def style() -> str:
    """Return the style sheet of reports and charts."""
    return files(__package__).joinpath("report.css").read_text("utf-8")
