"""Who may see the page: a browser on this machine that was given its token, from no other site.

A page of another site can make a browser send requests here: directly, or under a name of its own
that leads here (DNS rebinding). The browser says so in ``Origin``, ``Sec-Fetch-Site`` and ``Host``.
Other users of the machine can connect too, which is what the token is for.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from edgetune.serving.guard import App, Receive, Scope, Send

Headers = Sequence[tuple[bytes, bytes]]

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with none at all, a form would have the origin "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer."""

SAFE: Final = frozenset({"GET", "HEAD"})
"""Methods that change nothing."""

_LOCKED: Final = b"Open this page with the address that `edgetune view` printed.\n"
_ELSEWHERE: Final = b"This page answers only itself, on 127.0.0.1.\n"
_WELCOME: Final = (
    b'<!doctype html><html lang="en"><title>edgetune</title>'
    b'<link rel="icon" href="/static/icon.svg" type="image/svg+xml">'
    b'<meta http-equiv="refresh" content="0; url=/"><p><a href="/">Open the page</a></p></html>\n'
)
"""A redirect would still count as a request of the site that linked here, and get no cookie."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The token in the address, and the cookie that a browser gets for it."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32))


class Access:
    """Answers others before anything of theirs is read; every answer has the same headers."""

    def __init__(self, app: App, keys: Keys, port: int) -> None:
        """Guard an application that listens on a port."""
        self._app = app
        self._keys = keys
        self._hosts = frozenset({f"127.0.0.1:{port}", f"localhost:{port}"})
        # cookies know no ports: two pages must not overwrite each other's
        self._name = f"edgetune-view-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be answered."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        headers, sent = scope["headers"], _with_headers(send)
        welcome = scope["path"] == "/" and self._has_token(scope["query_string"])
        if not self._is_own(headers, scope["method"], linked=welcome):
            await _answer(sent, 403, _ELSEWHERE)
        elif welcome:
            cookie = f"{self._name}={self._keys.cookie}; Path=/; HttpOnly; SameSite=Strict"
            more = {"content-type": "text/html; charset=utf-8", "set-cookie": cookie}
            await _answer(sent, 200, _WELCOME, more)
        elif self._has_cookie(headers):
            await self._app(scope, receive, sent)
        else:
            await _answer(sent, 403, _LOCKED)

    def _is_own(self, headers: Headers, method: str, *, linked: bool) -> bool:
        """Tell whether a request names this page and comes from no other.

        ``linked``: it has the token, so that the link may stand anywhere.
        """
        hosts = _values(headers, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return False
        origins = _values(headers, b"origin")
        if any(origin != f"http://{hosts[0].lower()}" for origin in origins):
            return False
        if method not in SAFE and not origins:
            return False
        sites = {"same-origin", "none"}
        return linked or all(site in sites for site in _values(headers, b"sec-fetch-site"))

    def _has_token(self, query: bytes) -> bool:
        return _same(query.decode("latin-1"), f"token={self._keys.token}")

    def _has_cookie(self, headers: Headers) -> bool:
        for value in _values(headers, b"cookie"):
            try:
                found = SimpleCookie(value).get(self._name)
            except CookieError:
                continue
            if found is not None and _same(found.value, self._keys.cookie):
                return True
        return False


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for found, value in headers if found == name]


def _same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(), secret.encode())


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            kept = [item for item in message["headers"] if item[0].decode().lower() not in HEADERS]
            message = {**message, "headers": [*kept, *added]}
        await send(message)

    return sent


async def _answer(
    send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    given = {"content-type": "text/plain; charset=utf-8", **(headers or {})}
    given |= {"content-length": str(len(body)), "connection": "close"}
    plain = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": body})
