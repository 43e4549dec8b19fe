"""Serving the page until its command is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from edgetune.page.access import Keys
from edgetune.page.application import application
from edgetune.page.page import Page
from edgetune.serving.listening import bound, connected


def view(folder: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page of a folder until this thread is interrupted; ``ready`` is told its address.

    Raises:
        UsageError: if the port cannot be had.
    """
    keys = Keys()
    with closing(bound(port)) as listener, closing(Page(folder)) as page:
        found = listener.getsockname()[1]
        with connected(application(page, keys, found), listener) as thread:
            ready(f"http://127.0.0.1:{found}/?token={keys.token}")
            while thread.is_alive():
                time.sleep(0.5)
