"""The line at the bottom of a terminal that is written over, and what is going on, shown in it.

On pipes, dumb terminals and with ``--quiet`` or ``--verbose`` there is no such line: what goes on is
told in plain lines, each once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, RLock, Thread
from types import TracebackType
from typing import Final

from edgetune.cli.show import NORMAL, above, complain, draw, say, verbosity
from edgetune.units import format_seconds

QUICK_SECONDS: Final = 2.0
"""What takes no longer than this is not timed."""

ERASE: Final = "\r\x1b[K"


def can_draw() -> bool:
    """Return whether a line can be written over where progress is shown."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and verbosity() == NORMAL


def columns() -> int:
    """Return the width of the terminal where progress is shown, 80 where that is not known."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def fitting(candidates: Iterable[Sequence[str]], width: int | None) -> str:
    """Return the first of several lines, given in parts, that fits; the last one if none does.

    >>> fitting([("step 1", "  loss 2.5", ", mean 2.6"), ("step 1", "  loss 2.5")], 18)
    'step 1  loss 2.5'
    """
    line = ""
    for parts in candidates:
        line = "".join(parts)
        if width is None or len(line) <= width:
            break
    return line


class LiveLine:
    """A line that stays the last one: what is printed meanwhile goes above it."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self.live = can_draw()
        self._text = ""
        self._lock = RLock()

    def __enter__(self) -> LiveLine:
        """Let what is printed go above the line."""
        if self.live:
            above(self._make_room)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Erase the line."""
        if self.live:
            self.show("")
            above(None)

    def show(self, text: str) -> None:
        """Write a text over the line, as much of it as fits."""
        if self.live:
            with self._lock:
                self._text = text
                draw(f"{ERASE}{text[: columns() - 1]}")

    @contextmanager
    def _make_room(self) -> Iterator[None]:
        with self._lock:
            text = self._text
            if text:
                draw(ERASE)
            yield
            if text:
                self.show(text)


class Stages:
    """What a command is at, one thing after the other, with the seconds that it takes so far.

    Where lines cannot be drawn over, a stage has a line of its own once it is not quick.
    """

    def __init__(self) -> None:
        """Be at nothing yet."""
        self.line = LiveLine()
        self._title, self._begun, self._kept, self._told = "", 0.0, True, False
        self._heard = verbosity() >= NORMAL  # the clock's thread cannot ask
        self._lock, self._over = RLock(), Event()
        self._clock: Thread | None = None

    def __enter__(self) -> Stages:
        """Let a clock tick."""
        self.line.__enter__()
        self._clock = Thread(target=self._tick, daemon=True)
        self._clock.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the last stage and stop the clock."""
        self.end()
        self._over.set()
        if self._clock is not None:
            self._clock.join()
        self.line.__exit__(kind, error, trace)

    def begin(self, title: str, *, kept: bool = True) -> None:
        """Begin a stage; one that is not ``kept`` leaves no line behind."""
        self.end()
        with self._lock:
            self._title, self._begun, self._kept = title, time.monotonic(), kept
            self._told = not (kept and self._heard)
            self.line.show(title)

    def detail(self, text: str) -> None:
        """Show how far the stage is instead of how long it takes, until the next second."""
        if self._title:
            self.line.show(text)

    def end(self) -> None:
        """End the stage, if there is one."""
        with self._lock:
            title, self._title = self._title, ""
            if title and self.line.live:
                self.line.show("")
                if self._kept:
                    say(self._timed(title))

    def _timed(self, title: str) -> str:
        seconds = time.monotonic() - self._begun
        return f"{title}: {format_seconds(seconds)}" if seconds > QUICK_SECONDS else title

    def _tick(self) -> None:
        while not self._over.wait(1.0):
            with self._lock:
                if not self._title or time.monotonic() - self._begun <= QUICK_SECONDS:
                    continue
                if self.line.live:
                    seconds = round(time.monotonic() - self._begun)
                    shown = f"{seconds} s" if seconds < 60 else format_seconds(float(seconds))
                    timed = f" ... {shown}"
                    self.line.show(self._title[: max(0, columns() - 1 - len(timed))] + timed)
                elif not self._told:
                    self._told = True
                    complain(self._title)
