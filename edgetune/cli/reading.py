"""The bar that is shown while a large file is read."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgetune.cli.show import NORMAL, draw, verbosity
from edgetune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from edgetune.data import ReadProgress, Report

_BAR = 24
_QUICK_SECONDS = 1.0
_BETWEEN_SECONDS = 0.2


@contextmanager
def reading_bar() -> Iterator[Report | None]:
    """Yield what shows how far reading has come; None where there is no terminal to show it."""
    if not sys.stderr.isatty() or verbosity() < NORMAL:
        yield None
        return
    bar = _Bar()
    try:
        yield bar.show
    finally:
        bar.clear()


class _Bar:
    """A line that is written over; not shown at all if reading is quick."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._next = self._begun + _QUICK_SECONDS
        self._width = 0

    def show(self, progress: ReadProgress) -> None:
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

    def clear(self) -> None:
        if self._width:
            self._write("")
            draw("\r")

    def _write(self, text: str) -> None:
        draw(f"\r{text:<{self._width}}")
        self._width = len(text)
