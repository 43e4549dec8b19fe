"""The server: answers in this thread, connections in another one, on loopback alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from threading import Thread

import uvicorn

from edgetune.errors import EdgetuneError, UsageError
from edgetune.serving.api import Api
from edgetune.serving.batching import Batcher
from edgetune.workflows.opened import Opened

HOST = "127.0.0.1"
"""Nobody else can reach it."""

SECONDS_TO_END = 5
"""How long answers that are under way are waited for at the end."""


def serve(names: Mapping[str, Opened], port: int, ready: Callable[[int], None]) -> None:
    """Serve models until this thread is interrupted; ``ready`` is told the port.

    Raises:
        UsageError: if the port cannot be had.
    """
    batcher = Batcher()
    with closing(_bound(port)) as listener:
        config = uvicorn.Config(
            Api(names, batcher.put).application(),
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
            ready(listener.getsockname()[1])
            batcher.run()
        finally:
            server.should_exit = True
            thread.join()


def _bound(port: int) -> socket.socket:
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
