"""Listening on loopback, and answering there in a thread of its own."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import uvicorn
from starlette.requests import ClientDisconnect

from edgetune.errors import EdgetuneError, UsageError
from edgetune.serving.guard import App, Receive, Scope, Send

HOST = "127.0.0.1"
"""Nobody else can reach it."""

SECONDS_TO_END = 5
"""How long answers that are under way are waited for at the end."""


@contextmanager
def connected(application: App, listener: socket.socket) -> Iterator[Thread]:
    """Answer connections in a thread of its own, which is yielded, until the block ends."""
    config = uvicorn.Config(
        _Forgiving(application),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=SECONDS_TO_END,
    )
    server = uvicorn.Server(config)
    thread = Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="connections", daemon=True
    )
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise EdgetuneError("The server did not start. Run it again with --debug.")
            time.sleep(0.01)
        yield thread
    finally:
        server.should_exit = True
        with _unlogged():
            thread.join()


class _Forgiving:
    """An application for which a client that leaves while it is listened to is no fault."""

    def __init__(self, app: App) -> None:
        """Take the application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        with suppress(ClientDisconnect):
            await self._app(scope, receive, send)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep uvicorn from printing what it cancels at the end, with a traceback each."""
    logger = logging.getLogger("uvicorn.error")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def bound(port: int) -> socket.socket:
    """Return a socket that listens on loopback; 0 takes a free port.

    Raises:
        UsageError: if the port cannot be had.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"Port {port} cannot be had: {reason}. Choose another with --port."
        ) from error
    return listener
