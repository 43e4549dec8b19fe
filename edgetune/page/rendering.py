"""Pages as HTML: templates in which every text of a run is escaped and kept on its line."""

from __future__ import annotations

import time
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from edgetune.escapes import one_line, plain
from edgetune.report.markup import DASH
from edgetune.units import format_bytes, format_count, format_seconds
from edgetune.version import __version__


def rendered(template: str, **values: Any) -> str:
    """Return a template with its values."""
    return _environment().get_template(template).render(**values)


def moment(seconds: float) -> str:
    """Return a time as a day and minutes, in the machine's own time zone."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return DASH


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with some digits behind the point; a dash for none."""
    return DASH if value is None else f"{value:,.{digits}f}"


def lines(text: str) -> Markup:
    """Return a text of several lines, escaped."""
    return escape(plain(text))


def link(path: str, **values: str) -> str:
    """Return an address on the page.

    >>> link("/run", run="a b&c")
    '/run?run=a%20b%26c'
    """
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in values.items())
    return f"{path}?{query}" if query else path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("edgetune.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: one_line(value) if type(value) is str else value,
    )
    environment.filters.update(
        bytes=format_bytes, seconds=format_seconds, count=format_count, moment=moment,
        number=number, lines=lines,
    )  # fmt: skip
    environment.globals.update(link=link, release=__version__)
    return environment
