"""Requests to a hub: where it is, who asks, which answers are followed."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any, Final, cast
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from edgetune.errors import UsageError
from edgetune.version import __version__

PUBLIC: Final = "https://huggingface.co"
_OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_YES: Final = frozenset({"1", "ON", "YES", "TRUE"})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_SECONDS: Final = 30.0
"""Without an answer for so long, a connection counts as broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A hub that is asked: ``token`` is the user's, None without one."""

    endpoint: str
    token: str | None = field(default=None, repr=False)
    token_from: str = ""
    """Where the token was found, in words."""

    def model_url(self, model: str, revision: str) -> str:
        """Return where a revision of a model is described, with the sizes of its files."""
        return f"{self.endpoint}/api/models/{model}/revision/{quote(revision, safe='')}?blobs=true"

    def file_url(self, model: str, commit: str, name: str) -> str:
        """Return where a file of a model is."""
        return f"{self.endpoint}/{model}/resolve/{commit}/{quote(name)}"

    def page(self, model: str) -> str:
        """Return the page that people read."""
        return f"{self.endpoint}/{model}"

    def open(self, url: str, start: int = 0) -> Any:
        """Return the open answer to a request for what follows the first ``start`` bytes.

        Raises:
            OSError: if there is no answer, or it is an error (``urllib.error.HTTPError``).
        """
        request = Request(url, headers={"User-Agent": f"edgetune/{__version__}"})
        request.add_header("Accept-Encoding", "identity")
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self.token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return _opener(self.endpoint).open(request, timeout=_SECONDS)


def hub_of(endpoint: str | None, environment: Mapping[str, str] = os.environ) -> Hub:
    """Return the hub that was named, by ``--endpoint`` or ``HF_ENDPOINT``, else the public one.

    Raises:
        UsageError: if the environment forbids the network, it is no address, or the token would
            travel unencrypted.
    """
    if set_by := next((n for n in _OFFLINE if environment.get(n, "").upper() in _YES), None):
        raise UsageError(f"{set_by} is set, which forbids the network. Unset it to fetch a model.")
    address = (endpoint or environment.get("HF_ENDPOINT") or PUBLIC).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"{address} is not the address of a hub. Write it like {PUBLIC}.")
    token, token_from = _token(environment)
    if token and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise UsageError(
            f"{address} is not encrypted, and your token ({token_from}) would be readable on the "
            "way. Give an https address, or unset the token."
        )
    return Hub(endpoint=address, token=token, token_from=token_from)


def _token(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the user's token and where it was found, as the Hugging Face tools look for it."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environment.get(name, "").strip():
            return token, name
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    path = Path(environment.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    with suppress(OSError, UnicodeError):
        if token := path.read_text(encoding="utf-8").strip():
            return token, str(path)
    return None, ""


def _opener(endpoint: str) -> OpenerDirector:
    """Return what follows redirects without giving the token to another host."""
    return build_opener(
        ProxyHandler(), HTTPSHandler(context=_certificates()), _Redirects(urlsplit(endpoint).netloc)
    )


def _certificates() -> ssl.SSLContext:
    """Return the system's trusted certificates, with certifi's where a Python has none."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and "SSL_CERT_FILE" not in os.environ:
        with suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


class _Redirects(HTTPRedirectHandler):
    """Follow redirects; only the hub itself sees the token, and nothing leaves encryption."""

    def __init__(self, host: str) -> None:
        self._host = host

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        allowed = {"https"} if urlsplit(req.full_url).scheme == "https" else {"http", "https"}
        if urlsplit(newurl).scheme not in allowed:
            raise HTTPError(newurl, code, "a redirect away from encryption", headers, fp)
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if found is not None and token and urlsplit(newurl).netloc == self._host:
            found.add_unredirected_header("Authorization", token)
        return found

    # Python 3.10 does not follow 308 by itself.
    http_error_308 = cast("Callable[..., Any]", HTTPRedirectHandler.http_error_302)
