"""The server: answers in this thread, connections in another one, on loopback alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

from edgetune.serving.api import Api
from edgetune.serving.batching import Batcher
from edgetune.serving.listening import bound, connected
from edgetune.workflows.opened import Opened


def serve(names: Mapping[str, Opened], port: int, ready: Callable[[int], None]) -> None:
    """Serve models until this thread is interrupted; ``ready`` is told the port.

    Raises:
        UsageError: if the port cannot be had.
    """
    batcher = Batcher(next(iter(names.values())))
    application = Api(names, batcher.put).application()
    with closing(bound(port)) as listener, connected(application, listener):
        ready(listener.getsockname()[1])
        with closing(batcher):  # before the connections end, which wait for its answers
            batcher.run()
