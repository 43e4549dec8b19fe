"""The bar that is shown while a large file is read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgetune.cli.live import LiveLine
from edgetune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgetune.data import ReadProgress, Report

_BAR = 24
_QUICK_SECONDS = 1.0
_BETWEEN_SECONDS = 0.2


@contextmanager
def reading_bar() -> Iterator[Report | None]:
    """Yield what shows how far reading has come; None where there is no terminal to show it."""
    with LiveLine() as line:
        yield ReadingBar(line.show).show if line.live else None


class ReadingBar:
    """How far a file is read; not shown at all if reading is quick."""

    def __init__(self, show: Callable[[str], None]) -> None:
        """Show it by writing a line over."""
        self._begun, self._write = time.monotonic(), show
        self._next = self._begun + _QUICK_SECONDS

    def show(self, progress: ReadProgress) -> None:
        """Show how far reading has come."""
        now = time.monotonic()
        if now < self._next or not progress.done:
            return
        self._next = now + _BETWEEN_SECONDS
        share = progress.done / progress.total
        left = (now - self._begun) * (1 / share - 1)
        filled = "#" * round(_BAR * share)
        self._write(
            f"Reading |{filled:<{_BAR}}| {share:4.0%} of {format_bytes(progress.total)},"
            f" {progress.rows:,} rows, {format_seconds(left)} left"
        )
