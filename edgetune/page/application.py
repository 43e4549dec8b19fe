"""The page as an application: its addresses, and the few files that browsers load with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgetune.page.access import Access, Keys
from edgetune.page.asked import SCRIPT, Asked, endpoint, refusal
from edgetune.page.page import Page
from edgetune.page.views import chat, compare, export, new, rows, run, runs
from edgetune.report import style

View = Callable[[Page, Asked], Response]

SHOWN: dict[str, View] = {
    "/": runs.runs,
    "/live": runs.runs_live,
    "/run": run.run,
    "/run/live": run.run_live,
    "/compare": compare.compare,
    "/compare/live": compare.compare_live,
    "/new": new.new,
    "/new/files": new.files,
    "/rows": rows.rows,
    "/chat": chat.chat,
    "/export": export.export,
    "/export/live": export.export_live,
}
DONE: dict[str, View] = {
    "/run/act": run.act,
    "/new/plan": new.plan,
    "/new/start": new.start,
    "/chat/ask": chat.ask,
    "/chat/stop": chat.stop,
    "/chat/reset": chat.reset,
    "/chat/close": chat.close,
    "/export/begin": export.begin,
}
_MESSAGES = {
    404: "There is nothing at this address.",
    500: "This is a bug of edgetune. The terminal of `edgetune view` says what it is.",
}
STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


def application(page: Page, keys: Keys, port: int) -> Access:
    """Return the guarded application for a port."""
    routes = [
        *(_route(page, path, view, "GET") for path, view in SHOWN.items()),
        *(_route(page, path, view, "POST") for path, view in DONE.items()),
        Route("/static/{name}", _static, methods=["GET"]),
    ]
    return Access(
        Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _refused}),
        keys,
        port,
    )


def _route(page: Page, path: str, view: View, method: str) -> Route:
    return Route(path, endpoint(partial(view, page)), methods=[method])


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name == "report.css":
        return Response(style(), media_type="text/css")
    if name not in STATIC:
        raise HTTPException(404)
    content = (files(__package__) / "static" / name).read_bytes()
    return Response(content, media_type=STATIC[name])


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = _MESSAGES.get(status, "This cannot be done here.")
    return refusal(message, status, by_script=SCRIPT in request.headers)
