"""What went wrong on the way to a hub, in a sentence each, with what to do."""

from __future__ import annotations

import os
import socket
import ssl
from http.client import HTTPException
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from edgetune.errors import EdgetuneError, ModelError, NetworkError
from edgetune.hub.client import Hub

BROKEN: Final = (OSError, HTTPException)
"""What urllib raises, an answer that ends too soon included."""
PASSING: Final = frozenset({408, 425, 500, 502, 503, 504})
"""Answers that another try may not get."""


def told(error: Exception, hub: Hub, model: str, revision: str) -> EdgetuneError:
    """Return what to tell the user about a request that failed."""
    if isinstance(error, HTTPError):
        return _answered(error, hub, model, revision)
    return NetworkError(_unanswered(error, hub))


def is_passing(error: Exception) -> bool:
    """Return whether the same request may succeed in a moment."""
    if isinstance(error, HTTPError):
        return error.code in PASSING
    reason = error.reason if isinstance(error, URLError) else error
    return not isinstance(reason, socket.gaierror | ssl.SSLCertVerificationError)


def _answered(error: HTTPError, hub: Hub, model: str, revision: str) -> EdgetuneError:
    what = error.headers.get("X-Error-Code", "")
    if what == "GatedRepo":
        return ModelError(_gated(hub, model))
    if what == "RevisionNotFound":
        return ModelError(
            f"{model} has no revision {revision}. {hub.page(model)}/tree/main lists them."
        )
    if what == "EntryNotFound":
        return ModelError(f"{error.url} is not there any more. Fetch {model} again.")
    match error.code:
        case 401 | 404:
            return ModelError(_no_such_model(hub, model))
        case 403:
            return ModelError(_forbidden(hub, model))
        case 407:
            return NetworkError(
                "The proxy asks for a name and a password: HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT."
            )
        case 429:
            return NetworkError(_too_many(error, hub))
        case code if code in PASSING:
            return NetworkError(f"{hub.endpoint} answers {code}. Try again later.")
    return NetworkError(f"{hub.endpoint} answers {error.code} ({error.reason}) for {model}.")


def _gated(hub: Hub, model: str) -> str:
    if hub.token is None:
        return (
            f"{model} is gated: accept its terms on {hub.page(model)}, make a token on "
            f"{hub.endpoint}/settings/tokens, and set HF_TOKEN to it (or `hf auth login`)."
        )
    return (
        f"{model} is gated, and your token ({hub.token_from}) has no access. Accept its terms on "
        f"{hub.page(model)} with the account of the token; access may take its owner a while."
    )


def _no_such_model(hub: Hub, model: str) -> str:
    if hub.token is None:
        return (
            f"{hub.endpoint} has no model {model}, or it is private. Check the name; for a "
            "private one set HF_TOKEN (or `hf auth login`)."
        )
    return (
        f"{hub.endpoint} has no model {model} for your token ({hub.token_from}). Check the name, "
        "and that the token is valid and may read it."
    )


def _forbidden(hub: Hub, model: str) -> str:
    token = "without a token" if hub.token is None else f"to your token ({hub.token_from})"
    return (
        f"{hub.endpoint} does not give {model} {token}. Allow the token to read it, or make one "
        f"on {hub.endpoint}/settings/tokens and set HF_TOKEN to it."
    )


def _too_many(error: HTTPError, hub: Hub) -> str:
    wait = error.headers.get("Retry-After", "")
    when = f"in {wait} seconds" if wait.isdecimal() else "in some minutes"
    more = "" if hub.token else " With a token (HF_TOKEN) more is allowed."
    return f"{hub.endpoint} has had too many requests from here. Try again {when}.{more}"


def _unanswered(error: Exception, hub: Hub) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    through = _proxy(hub)
    host = urlsplit(hub.endpoint).netloc
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"The certificate of {host} is not trusted here ({reason.verify_message}). Where a "
            "company's proxy reads along, set SSL_CERT_FILE to its certificate."
        )
    asked = f"The proxy {through} (HTTPS_PROXY)" if through else str(host)
    if isinstance(reason, socket.gaierror):
        return f"{asked} is not found: there is no network, or the name is wrong."
    if isinstance(reason, ConnectionRefusedError):
        return f"{asked} refuses the connection: nothing listens there."
    if isinstance(reason, TimeoutError):
        return f"{asked} does not answer. Try again: the download resumes."
    said = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
    return (
        f"{asked} closed the connection: {said or type(reason).__name__}. Try again: the download "
        "resumes."
    )


def _proxy(hub: Hub) -> str | None:
    """Return the proxy that the environment names, without a password."""
    parts = urlsplit(hub.endpoint)
    if parts.hostname is None or (os.name == "posix" and proxy_bypass(parts.hostname)):
        return None
    found = getproxies().get(parts.scheme)
    return None if found is None else found.rpartition("@")[2].rpartition("//")[2]
