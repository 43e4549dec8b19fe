"""A new run: a form beside its plan, which changes as the form does."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import JSONResponse, RedirectResponse, Response

from edgetune.errors import EdgetuneError, UsageError
from edgetune.escapes import shell_word
from edgetune.page.actions import train_command
from edgetune.page.asked import Asked
from edgetune.page.child import ChildError
from edgetune.page.forms import FIRST, errors_by_field, fields, filled, flags, suggested_files
from edgetune.page.offers import offers
from edgetune.page.page import Page, shown
from edgetune.page.rendering import link, rendered

WHERE: Final = ("model", "data", "from", "device", "memory")
"""Fields that are no settings of a run."""
BEHIND: Final = ("device", "from")
"""Of them, those that stand behind the heading of all settings."""
MODELS_OF_RUNS: Final = 20
"""Runs, of those that changed last, whose models are offered first."""


def new(page: Page, asked: Asked) -> Response:
    """Show the form, filled with what the address says."""
    return _form(page, asked, {})


def plan(page: Page, asked: Asked) -> Response:
    """Answer with the plan of what is in the form, or with what is wrong by the field."""
    try:
        found = _planned(page, asked)
    except EdgetuneError as error:
        return JSONResponse({"errors": _errors(error)})
    choice = {**found["plan"]["choice"], **found["plan"]["training"]}
    chosen = {name: _text(value) for name, value in choice.items()}
    html = rendered("_plan.html", command=_command(page, asked), **found)
    return JSONResponse({"html": html, "chosen": chosen, "errors": {}})


def start(page: Page, asked: Asked) -> Response:
    """Start the run and show it; what is wrong is shown by its field."""
    name = asked.one("name", "")
    try:
        if not asked.one("data", ""):
            raise UsageError("--data: which file? Give one with your rows.")
        _planned(page, asked)
        page.actions.start(name, _given(asked), flags(asked))
    except EdgetuneError as error:
        return _form(page, asked, _errors(error), status=400)
    return RedirectResponse(link("/run", run=name), 303)


def files(page: Page, asked: Asked) -> Response:
    """Suggest files and folders for what was typed."""
    return JSONResponse({"files": list(suggested_files(asked.one("typed", "")))})


def _form(page: Page, asked: Asked, errors: dict[str, str], status: int = 200) -> Response:
    known = fields()
    values = {name: found[0] for name, found in asked.given.items() if found}
    offered = offers(page.folder, page.listing.runs()[:MODELS_OF_RUNS])
    return shown(
        "new.html",
        status,
        values=values,
        errors=errors,
        first=[field for field in known if field.name in FIRST],
        others=[field for field in known if field.name not in FIRST],
        opened=any(values.get(name) for name in (*BEHIND, *(field.name for field in known
                   if field.name not in FIRST))),
        offered=offered,
        folder=str(page.folder),
    )  # fmt: skip


def _planned(page: Page, asked: Asked) -> dict[str, Any]:
    """Return the plan of what is in the form.

    Raises:
        EdgetuneError: if there is none.
    """
    given = _given(asked)
    if not given["model"]:
        raise UsageError("--model: which model? Give a name, a folder or a GGUF file.")
    return page.desk.ask({"do": "plan", **given, "settings": filled(asked)})


def _given(asked: Asked) -> dict[str, str]:
    return {name: asked.one(name, "") for name in WHERE}


def _command(page: Page, asked: Asked) -> str:
    """Return the command line that does the same."""
    name = asked.one("name", "") or "NAME"
    arguments = train_command(page.folder / name, _given(asked), flags(asked))
    return " ".join(["edgetune", *map(shell_word, arguments[:-1])])


def _errors(error: EdgetuneError) -> dict[str, str]:
    kind = error.of_kind if isinstance(error, ChildError) else error.kind
    return dict(errors_by_field(str(error), kind))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return str(value.get("layers", ""))
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
