"""What a browser asks for, read; and the way from there to an answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from edgetune.errors import EdgetuneError, UsageError
from edgetune.page.rendering import rendered

LARGEST_BODY: Final = 1 << 18
"""Bytes of a form; the longest is a question of a chat."""
MOST_FIELDS: Final = 200
SCRIPT: Final = "x-edgetune-page"
"""Header of what the page's own script asks for: it shows errors itself."""


class NotThereError(UsageError):
    """There is nothing at an address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request: what stands behind the question mark or in the form, by name."""

    given: Mapping[str, list[str]]
    begun: float = field(default_factory=time.thread_time)
    """The time that the processor had spent on the thread before, in seconds."""

    def one(self, name: str, default: str | None = None) -> str:
        """Return the value of a field.

        Raises:
            UsageError: if it is missing and has no default.
        """
        values = self.given.get(name, [])
        if values:
            return values[0].strip()
        if default is None:
            raise UsageError(f"The request has no {name}.")
        return default

    def number(self, name: str, default: int) -> int:
        """Return a whole number that is not negative.

        Raises:
            UsageError: if it is something else.
        """
        text = self.one(name, str(default))
        if not (text.isascii() and text.isdecimal() and len(text) < 16):
            raise UsageError(f"{name} must be a whole number; found {text[:40]!r}.")
        return int(text)


Work = Callable[[Asked], Response]


def endpoint(work: Work) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers a request by some work in a thread; its errors are answers too."""

    async def answered(request: Request) -> Response:
        by_script = SCRIPT in request.headers
        try:
            given = await _given(request)
            return await run_in_threadpool(lambda: work(Asked(given=given)))
        except EdgetuneError as error:
            status = 404 if isinstance(error, NotThereError) else 400
            return refusal(str(error), status, by_script=by_script)
        except OSError as error:  # what is shown was taken away meanwhile
            return refusal(f"It cannot be read: {error}.", 404, by_script=by_script)

    return answered


def refusal(message: str, status: int, *, by_script: bool) -> Response:
    """Return an error as a page, or as JSON for the script."""
    if by_script:
        return JSONResponse({"error": message}, status)
    return HTMLResponse(rendered("error.html", message=message), status)


async def _given(request: Request) -> dict[str, list[str]]:
    """Return the fields of a request.

    Raises:
        UsageError: if there are too many or it is too long.
    """
    if request.method in {"GET", "HEAD"}:
        return _fields(request.url.query)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise UsageError(f"The form has more than {LARGEST_BODY:,} bytes.")
    return _fields(body.decode(errors="replace"))


def _fields(text: str) -> dict[str, list[str]]:
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise UsageError(f"The request cannot be read: {error}.") from error
