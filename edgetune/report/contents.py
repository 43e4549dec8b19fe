"""What a report says, as data: read from the files of a run folder, drawn nowhere here.

``plan``, ``receipt``, ``memory``, ``verdict``, ``samples``, ``search`` and ``ranks`` are the files' own values; those of an
older edgetune may lack something, which is why :func:`value` and :func:`figure` ask for one with care.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgetune.report.series import Floats
from edgetune.runs.lines import is_measured

Plain = Mapping[str, Any]
"""An object of a JSON or YAML file."""

StatusKind = Literal["planned", "running", "finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a run stands; ``because`` is what it ended with, ``exit_code`` that of its command."""

    kind: StatusKind
    because: str = ""
    exit_code: int | None = None

    @property
    def resumable(self) -> bool:
        """Whether ``train --resume`` may go on with it."""
        return self.kind in {"stopped", "interrupted"} or self.exit_code == 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The steps of a run as columns, (N,) each; ``peak`` is in bytes, that of the run so far."""

    step: Floats
    loss: Floats
    seconds: Floats
    tokens: Floats
    rate: Floats
    peak: Floats

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.step)

    @classmethod
    def none(cls) -> Steps:
        """Return no steps."""
        return cls(**dict.fromkeys(cls.__slots__, np.empty(0)))

    @property
    def tokens_per_second(self) -> float:
        """The speed of all steps together, 0 if none was taken."""
        seconds = float(self.seconds.sum())
        return float(self.tokens.sum()) / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The validation rows after ``step`` steps, at step 0 by the base alone."""

    step: int
    loss: float
    rows: int = 0
    metrics: Plain = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is known of a run.

    ``total`` is how many steps it was to take, None if that is not known. Times are in seconds since
    1970: ``made`` is that of this object, ``begun`` and ``ended`` are those of the run (while it is
    running, ``ended`` is None). ``journal`` holds the notes of the run, the oldest first; ``state``
    is that of its newest checkpoint. ``problems`` says what could not be read.
    """

    name: str
    path: Path
    status: Status
    made: float
    begun: float | None
    ended: float | None
    total: int | None
    plan: Plain
    receipt: Plain
    memory: Plain
    verdict: Plain
    samples: Plain
    search: Plain
    ranks: Plain
    state: Plain
    steps: Steps
    evaluations: tuple[Evaluation, ...]
    journal: tuple[Plain, ...]
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Report:
        """Return the report of a run folder.

        Raises:
            UsageError: if it is none.
        """
        from edgetune.report.reading import Reader

        return Reader.of(folder).read()

    @property
    def step(self) -> int:
        """The last step that was taken."""
        return int(self.steps.step[-1]) if len(self.steps) else 0

    @property
    def versions(self) -> Plain:
        """The versions of everything that computed."""
        found = value(self.state, "versions")
        return found if isinstance(found, Mapping) else {}

    @property
    def base(self) -> Evaluation | None:
        """The validation rows by the base alone."""
        return next((one for one in self.evaluations if one.step == 0), None)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the lowest loss of those that were trained for."""
        trained = [one for one in self.evaluations if one.step]
        return min(trained, key=lambda one: one.loss, default=None)

    def notes(self, *names: str) -> list[Plain]:
        """Return the notes of the journal of some kinds."""
        return [note for note in self.journal if note.get("what") in names]


def value(plain: Any, *path: str) -> Any:
    """Return what lies in nested objects, None where it is not there."""
    for name in path:
        plain = plain.get(name) if isinstance(plain, Mapping) else None
    return plain


def figure(plain: Any, *path: str) -> float | None:
    """Return a number that a run can have measured in nested objects, None where there is none."""
    found = value(plain, *path)
    return float(found) if is_measured(found) else None


def items(plain: Any, *path: str) -> list[Any]:
    """Return the list that lies in nested objects, an empty one where there is none."""
    found = value(plain, *path)
    return list(found) if isinstance(found, list | tuple) else []
