"""Reports of the runs that are looked at: their logs are read on, not again."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Final

from edgetune.page.listing import Listed
from edgetune.report import Reader, Report

KEPT: Final = 8
"""Runs whose logs are held; a comparison shows six."""


class Readers:
    """Holds what was read of the runs that were looked at last."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._known: OrderedDict[str, Reader] = OrderedDict()
        self._lock = Lock()

    def report(self, run: Listed) -> Report:
        """Return the report of a run as it stands now.

        Raises:
            UsageError: if it is gone.
        """
        with self._lock:
            reader = self._known.pop(run.name, None) or Reader.of(run.path)
            self._known[run.name] = reader
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return reader.read(running=run.holder is not None)
