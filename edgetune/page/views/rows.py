"""Rows as they are trained on: what is learned of each and what is only read."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from edgetune.page.asked import Asked
from edgetune.page.page import Page, shown

AT_ONCE: Final = 20
"""Rows of a page."""


def rows(page: Page, asked: Asked) -> Response:
    """Show some rows of a run's data, or of a file for a model."""
    first = max(0, asked.number("row", 1) - 1)
    request: dict[str, object] = {"do": "rows", "first": first, "count": AT_ONCE}
    about = {name: asked.one(name, "") for name in ("run", "model", "data")}
    if about["run"]:
        request["run"] = str(page.listing.run(about["run"]).path)
    else:
        request |= {"model": asked.one("model"), "data": asked.one("data")}
    found = page.desk.ask(request)
    kept = {name: value for name, value in about.items() if value}
    return shown("rows.html", first=first, count=AT_ONCE, about=kept, name=about["run"], **found)
