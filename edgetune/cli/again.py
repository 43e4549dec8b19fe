"""How a run goes on in another process, if the one that it is in dies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetune.cli.show import QUIET, VERBOSE, verbosity
from edgetune.events import Event, Recovered, SaveDue
from edgetune.runs import AS_USUAL, RunOptions
from edgetune.workflows.training import Run
from edgetune.workflows.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What a run is told, of which ``options`` are in its folder, and the rest once more.

    It is told again when another process goes on with it.
    """

    as_json: bool
    options: RunOptions = AS_USUAL
    data: Path | None = None
    memory: int | None = None
    nproc: int = 1
    rank_timeout: int | None = None

    def arguments(self, run: Run) -> list[str]:
        """Return the command line that resumes a run."""
        level = verbosity()
        flags = {
            "--json": self.as_json, "--quiet": level == QUIET, "--verbose": level == VERBOSE,
        }  # fmt: skip
        values = {
            "--output": run.folder.path, "--data": self.data, "--memory": self.memory,
            "--nproc": self.nproc if self.nproc > 1 else None,
            "--rank-timeout": self.rank_timeout if self.nproc > 1 else None,
        }  # fmt: skip
        given = [f"{name}={value}" for name, value in values.items() if value is not None]
        return ["train", "--resume", *given, *(name for name in flags if flags[name])]


def watch(run: Run, worker: Worker, again: Again) -> None:
    """Tell the parent how this run goes on if this process dies."""
    rows = run.start.rows or run.job.plan.choice.micro_batch
    command = run.folder.resume_command
    worker.can_resume(again.arguments(run), command=command, rows=rows, strict=again.options.strict)


def report(worker: Worker, event: Event) -> None:
    """Tell the parent how far the run is."""
    match event:
        case Recovered():
            worker.computes(event.rows)
        case SaveDue():
            worker.saved(event.state.step)
