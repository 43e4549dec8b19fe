"""A run remembers its exports: a note in its journal, and its report made anew."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from edgetune.report import Report, write_report
from edgetune.report.writing import NAME
from edgetune.runs import RunFolder
from edgetune.runs.lock import holder


def note_export(source: Path, because: str, **facts: Any) -> None:
    """Note an export in the run that it was made from, if it was a run.

    The export stands whether that can be written or not.
    """
    with suppress(OSError):
        if not (source / "plan.yaml").is_file():
            return
        RunFolder(source).note("exported", because, **facts)
        if holder(source) is None:  # a run at work writes its report itself
            write_report(Report.of(source), source / NAME)
