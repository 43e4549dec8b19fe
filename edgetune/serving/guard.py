"""Which requests a server on loopback answers: those that name it so, from no other site's page.

A page in a browser can reach a server on loopback: directly, or under its own name (DNS rebinding).
The browser says both, in ``Origin`` and in ``Host``.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HOST: Final = r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"
HOST: Final = re.compile(_HOST, re.IGNORECASE | re.ASCII)
ORIGIN: Final = re.compile(rf"https?://{_HOST}", re.IGNORECASE | re.ASCII)
_REFUSED: Final = (
    b'{"error": {"message": "This server answers only to requests from this machine that name it '
    b'localhost or 127.0.0.1.", "type": "forbidden", "param": null, "code": "forbidden"}}'
)


class LoopbackOnly:
    """Answers others with 403 before anything of theirs is read."""

    def __init__(self, app: App) -> None:
        """Guard an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be answered."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and is_local(scope["headers"])):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http":
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(_REFUSED)).encode()),
                (b"connection", b"close"),
            ]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSED})


def is_local(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether the headers name this machine, and no page of another site.

    >>> is_local([(b"host", b"localhost:80")])
    True
    >>> is_local([(b"host", b"localhost"), (b"origin", b"https://example.org")])
    False
    """
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    return (
        len(hosts) == 1
        and HOST.fullmatch(hosts[0]) is not None
        and all(ORIGIN.fullmatch(origin) for origin in origins)
    )
