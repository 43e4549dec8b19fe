"""The page of a folder: what its views share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from starlette.responses import HTMLResponse, Response

from edgetune.page.actions import Actions
from edgetune.page.asked import Asked
from edgetune.page.child import Child
from edgetune.page.jobs import Jobs
from edgetune.page.listing import Listing
from edgetune.page.readers import Readers
from edgetune.page.rendering import rendered

DESK_SECONDS: Final = 180.0
CHAT_SECONDS: Final = 300.0
"""How long rows and a model are held that nobody asks for."""


@dataclass(slots=True)
class Page:
    """A folder of runs and what acts on them."""

    folder: Path
    listing: Listing = field(init=False)
    jobs: Jobs = field(init=False)
    actions: Actions = field(init=False)
    readers: Readers = field(default_factory=Readers)
    desk: Child = field(default_factory=lambda: Child("edgetune.page.desk", DESK_SECONDS))
    chat: Child = field(default_factory=lambda: Child("edgetune.page.chatroom", CHAT_SECONDS))

    def __post_init__(self) -> None:
        """Look after the folder."""
        self.listing, self.jobs = Listing(self.folder), Jobs(self.folder)
        self.actions = Actions(self.listing, self.jobs)

    def close(self) -> None:
        """End the processes that hold rows and models; trainings go on."""
        self.desk.close()
        self.chat.close()


def shown(template: str, status: int = 200, **values: Any) -> Response:
    """Return a page."""
    return HTMLResponse(rendered(template, **values), status)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a page that stays live: what decides it, its template, what makes its values."""

    state: object
    template: str
    values: Callable[[], Mapping[str, Any]]

    @property
    def version(self) -> str:
        """A short name of the state."""
        return sha256(repr(self.state).encode(errors="replace")).hexdigest()[:16]


def shown_with(part: Part, template: str, status: int = 200, **values: Any) -> Response:
    """Return a page that has a live part in it."""
    given = {**part.values(), **values, "version": part.version, "inner": part.template}
    return shown(template, status, **given)


def live(asked: Asked, part: Part) -> Response:
    """Return a part of a page, or nothing if the browser has it as it stands."""
    version = part.version
    known = asked.one("version", "") == version
    text = "" if known else rendered(part.template, **part.values())
    cost = f"{1000 * (time.thread_time() - asked.begun):.0f}"
    headers = {"x-version": version, "x-milliseconds": cost}
    return (
        Response(status_code=204, headers=headers) if known else HTMLResponse(text, headers=headers)
    )
