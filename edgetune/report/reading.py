"""A run folder as a :class:`Report`: read once, or again and again as the run goes on."""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgetune.errors import EdgetuneError
from edgetune.files import load_json
from edgetune.planning import read_plan_file
from edgetune.report.contents import Evaluation, Plain, Report, Steps, figure
from edgetune.report.status import status_of
from edgetune.runs.folder import RANKS, RunFolder
from edgetune.runs.lines import LogTail, is_measured, is_step
from edgetune.runs.lock import holder
from edgetune.runs.retention import latest
from edgetune.runs.state import STATE

NOTES: Final = 2000
"""Notes of the journal that are kept, from its end; a run writes one a checkpoint."""

LARGEST: Final = 4 << 20
"""Bytes of a JSON file of a run; ours have a few thousand."""

COLUMNS: Final = {
    "step": "step", "loss": "loss", "seconds": "seconds", "tokens": "tokens",
    "rate": "learning_rate", "peak": "peak_bytes",
}  # fmt: skip
_NEEDED: Final = [index for index, name in enumerate(COLUMNS) if name != "rate"]
LINES: Final = 500
"""Lines of a log that are read at once."""


@dataclass(slots=True)
class Reader:
    """Reads a run folder; what was read of its logs before is not read again."""

    folder: RunFolder
    _metrics: LogTail = field(init=False)
    _journal: LogTail = field(init=False)
    _columns: dict[str, array[float]] = field(init=False)
    _evaluations: list[Evaluation] = field(default_factory=list)
    _notes: list[Plain] = field(default_factory=list)
    _files: dict[Path, tuple[Any, Plain]] = field(default_factory=dict)
    _problems: list[str] = field(default_factory=list)
    _begun: float | None = None

    def __post_init__(self) -> None:
        """Begin before the first line."""
        self._metrics, self._journal = LogTail(self.folder.metrics), LogTail(self.folder.journal)
        self._forget()

    @classmethod
    def of(cls, path: Path) -> Reader:
        """Return what reads a run folder.

        Raises:
            UsageError: if it is none.
        """
        return cls(RunFolder.open(path))

    def read(self, *, running: bool | None = None) -> Report:
        """Return what the folder says now; ``running`` None: as its lock says."""
        self._problems = []
        self._read_metrics()
        self._read_journal()
        path = self.folder.path
        plan, state = self._plan(), self._state()
        steps, total = self._steps(), _total(plan, state)
        if running is None:
            running = holder(path) is not None
        finished = total is not None and len(steps) > 0 and steps.step[-1] >= total
        status = status_of(
            self._notes, running=running, finished=finished and self.folder.adapter.is_dir()
        )
        return Report(
            name=path.resolve().name,
            path=path,
            status=status,
            made=time.time(),
            begun=self._begun,
            ended=None if status.kind in {"running", "planned"} else self._ended(),
            total=total,
            plan=plan,
            receipt=self._json(path / "receipt.json"),
            memory=self._json(path / "memory.json"),
            verdict=self._json(path / "verdict.json"),
            samples=self._json(path / "samples.json"),
            search=self._json(path / "search.json"),
            ranks=self._json(path / RANKS),
            state=state,
            steps=steps,
            evaluations=tuple(self._evaluations),
            journal=tuple(self._notes),
            problems=tuple(self._problems),
        )

    def _forget(self) -> None:
        self._columns = {name: array("d") for name in COLUMNS}
        self._evaluations.clear()

    def _read_metrics(self) -> None:
        before = -1
        while self._metrics.offset != before:  # a hundred thousand lines at once are 100 MB
            before = self._metrics.offset
            anew, lines = self._metrics.read(LINES)
            if anew:
                self._forget()
            for line in lines:
                if line.get("event") == "step":
                    self._add_step(line)
                elif line.get("event") == "eval":
                    self._add_evaluation(line)

    def _add_step(self, line: Mapping[str, Any]) -> None:
        found = [_number(line.get(key)) for key in COLUMNS.values()]
        if not is_step(line.get("step")) or any(isnan(found[index]) for index in _NEEDED):
            return
        steps = self._columns["step"]
        if found[0] <= (steps[-1] if steps else 0.0):  # never in a log of ours; charts need order
            return
        for column, number in zip(self._columns.values(), found, strict=True):
            column.append(number)

    def _add_evaluation(self, line: Mapping[str, Any]) -> None:
        step, loss = line.get("step"), figure(line, "loss")
        if not is_step(step) or loss is None:
            return
        if self._evaluations and step <= self._evaluations[-1].step:
            return
        metrics = {key: line[key] for key in line if key.startswith("rewards/") or key == "kl"}
        rows = int(figure(line, "rows") or 0)
        self._evaluations.append(Evaluation(step=step, loss=loss, rows=rows, metrics=metrics))

    def _read_journal(self) -> None:
        anew, lines = self._journal.read()
        if anew:
            self._notes.clear()
            self._begun = None
        self._notes.extend(lines)
        if self._begun is None and self._notes:
            self._begun = figure(self._notes[0], "time")
        del self._notes[:-NOTES]

    def _ended(self) -> float | None:
        """Return when the run ended: as its journal says, or when its log was last written."""
        ends = {"adapter written", "no adapter", "ended early"}
        noted = [note for note in self._notes if note.get("what") in ends | {"resumed"}]
        if noted and noted[-1]["what"] in ends:
            return figure(noted[-1], "time")
        return _changed(self.folder.metrics)

    def _steps(self) -> Steps:
        return Steps(**{name: np.array(column) for name, column in self._columns.items()})

    def _plan(self) -> Plain:
        file = self.folder.plan
        if (known := self._known(file)) is not None:
            return known
        try:
            return self._remember(file, read_plan_file(file))
        except (EdgetuneError, OSError, ValueError) as error:
            self._problems.append(str(error))
            return {}

    def _state(self) -> Plain:
        """Return what the newest checkpoint says of the run."""
        try:
            newest = latest(self.folder.checkpoints)
        except OSError:
            return {}
        return {} if newest is None else self._json(newest / STATE)

    def _json(self, file: Path) -> Plain:
        if (known := self._known(file)) is not None:
            return known
        try:
            found = load_json(file, LARGEST)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._problems.append(f"{file.name} cannot be read: {error}")
            return {}
        return self._remember(file, _object(found))

    def _known(self, file: Path) -> Plain | None:
        """Return what a file said, if it is still the same."""
        mark, found = self._files.get(file, (None, {}))
        return found if mark is not None and mark == _mark(file) else None

    def _remember(self, file: Path, found: Plain) -> Plain:
        if file.name == STATE:  # one a checkpoint, of which only the newest counts
            self._files = {k: v for k, v in self._files.items() if k.name != STATE}
        self._files[file] = _mark(file), found
        return found


def _number(found: Any) -> float:
    """Return a number, NaN for anything else; as :func:`figure`, a few times faster."""
    return float(found) if is_measured(found) else nan


def _object(found: Any) -> Plain:
    return found if isinstance(found, dict) else {}


def _mark(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _changed(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _total(plan: Plain, state: Plain) -> int | None:
    """Return how many steps a run is to take: as its checkpoints say, or its plan."""
    found = figure(state, "schedule", "steps") or figure(plan, "training", "steps")
    return None if found is None else int(found)
