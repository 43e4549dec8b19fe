"""Writes what happens in a run into its folder, as it happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from edgetune.backend import Session
from edgetune.errors import OutOfMemoryError
from edgetune.events import (
    EndedEarly,
    Evaluated,
    Event,
    Piloted,
    PlanExceeded,
    RanksSeen,
    Recovered,
    Rewound,
    RunState,
    SaveDue,
    Shared,
    Stepped,
    TrialSaveDue,
    UnderPressure,
)
from edgetune.files import sync, unwritable
from edgetune.planning import Plan
from edgetune.runs.checkpoint import restate, save_checkpoint, save_trial
from edgetune.runs.facts import RunFacts
from edgetune.runs.folder import ELSEWHERE, RANKS, RunFolder
from edgetune.runs.lines import append_line
from edgetune.runs.retention import mark_best, prune


@contextmanager
def recording(folder: RunFolder) -> Iterator[None]:
    """Say what it means that something of a run cannot be written.

    Raises:
        DiskError: if the disk is full, or the folder was taken away; what is there is whole.
        OutOfMemoryError: if there is no memory to write with; the same holds.
    """
    folder.require_there()
    try:
        yield
    except OSError as error:
        folder.require_there()
        raise unwritable("The run", folder.path, error, ELSEWHERE) from error
    except MemoryError as error:
        raise OutOfMemoryError(
            f"There is no memory left to save the run in {folder.path}: {error}. Close other "
            f"programs and go on with: {folder.resume_command}"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    """Consumes a run's events."""

    folder: RunFolder
    session: Session
    plan: Plan
    facts: RunFacts
    ranks: Sequence[Mapping[str, Any]] = ()
    """What each rank is, where there are several."""

    def handle(self, event: Event) -> None:
        """Write an event down; a due checkpoint is saved before this returns.

        Raises:
            DiskError: if the disk is full or gone; the checkpoints before it are whole.
            OutOfMemoryError: if there is no memory to write with; the same holds.
        """
        with recording(self.folder):
            self._write(event)

    def _write(self, event: Event) -> None:
        match event:
            case Stepped():
                append_line(self.folder.metrics, _line("step", event))
            case Evaluated():
                append_line(self.folder.metrics, _line("eval", event))
            case TrialSaveDue():
                save_trial(
                    self.folder.checkpoints, self.session, self.plan, event.state, self.facts
                )
            case Piloted():
                facts = {"peak_bytes": event.peak_bytes, "rows": event.rows}
                self.folder.note("pilot", "tried before training", **facts, seconds=event.seconds)
            case Shared():
                restate(self.folder.checkpoints, event.state, self.facts)
                speeds = [round(speed, 3) for speed in event.speeds]
                gain = round(event.gain, 3)
                self.folder.note("steps shared", event.because, speeds=speeds, gain=gain)
            case RanksSeen():
                ranks = [
                    {**facts, **asdict(figures)}
                    for facts, figures in zip(self.ranks, event.ranks, strict=True)
                ]
                self.folder.write(RANKS, {"step": event.step, "ranks": ranks})
            case Recovered():
                facts = {"step": event.step, "rows": event.rows}
                self.folder.note("smaller micro-batches", event.because, **facts)
            case Rewound():
                back = {"step": event.step, "to": event.to, "learning_rate": event.learning_rate}
                self.folder.note("back to a checkpoint", event.because, **back)
            case EndedEarly():
                because = f"no lower validation loss in {event.evaluations} evaluations"
                self.folder.note("ended learning", because, step=event.step, lowest=event.lowest)
            case PlanExceeded():
                facts = {"peak_bytes": event.peak_bytes, "planned_bytes": event.planned_bytes}
                self.folder.note("over the plan", "more memory than planned", **facts)
            case UnderPressure():
                what = "paused" if event.paused else "the machine is under strain"
                self.folder.note(what, event.because, step=event.step)
            case SaveDue():
                self._save(event.state)

    def _save(self, progress: RunState) -> None:
        if self.folder.metrics.exists():
            sync(self.folder.metrics)  # a checkpoint on disk has its past on disk
        folder = self.folder.checkpoints
        path = save_checkpoint(folder, self.session, self.plan, progress, self.facts)
        if progress.is_best:
            mark_best(folder, path)
            self.folder.note("best checkpoint", "lowest validation loss", step=progress.step)
        prune(folder, self.plan.training.keep, self.facts.returned_to(progress))


def _line(name: str, event: Stepped | Evaluated) -> dict[str, Any]:
    """Return a line of the metrics; those of an objective stand beside the others."""
    figures = {key: value for key, value in asdict(event).items() if value is not None}
    metrics: dict[str, float] = figures.pop("metrics")
    return {"event": name, **figures, **metrics}
