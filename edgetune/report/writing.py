"""``report.html`` of a run at work: written again as it goes on, for a small share of its time.

A report that cannot be written stops no run: what is learned counts more than its picture.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgetune.events import Event, Stepped
from edgetune.owned import replacing_shared, sweep
from edgetune.report.contents import Report
from edgetune.report.page import render
from edgetune.report.reading import Reader
from edgetune.runs.folder import RunFolder

NAME: Final = "report.html"

SHARE: Final = 0.01
"""Of the time of a run, what its reports may take; the first and the last come in any case."""


@dataclass(slots=True)
class ReportWriter:
    """Keeps the report of a run true: it is whole at every moment, and says what it is as of."""

    folder: RunFolder
    _reader: Reader = field(init=False)
    _first: bool = field(default=True, init=False)
    _next: float = field(default=0.0, init=False)
    failed: str = field(default="", init=False)
    """Why the last report could not be written."""

    def __post_init__(self) -> None:
        """Read nothing yet; remove what a process that was killed left of a report."""
        self._reader = Reader(self.folder)
        sweep(self.folder.path, f".{NAME}.*.partial")

    def follow(self, event: Event) -> None:
        """Write after the first step, and then after whatever is no step, if it is time."""
        if isinstance(event, Stepped):
            if not self._first:
                return
            self._first = False
        elif time.monotonic() < self._next:
            return
        self.write(running=True)

    def write(self, *, running: bool) -> None:
        """Write the report as of now; the one before it stays if that fails."""
        begun, self.failed = time.monotonic(), ""
        try:
            write_report(self._reader.read(running=running), self.folder.path / NAME)
        except (OSError, MemoryError) as error:
            self.failed = f"{NAME} cannot be written: {error}."
        ended = time.monotonic()
        self._next = ended + (ended - begun) / SHARE


def write_report(report: Report, path: Path) -> Path:
    """Write a report as a page, whole or not at all, and return its path.

    Raises:
        OSError: if it cannot be written.
    """
    data = render(report).encode()
    with replacing_shared(path) as partial:
        partial.write_bytes(data)
    return path
