"""The run folder: where things lie, and the log files that only grow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgetune.errors import DiskError, UsageError
from edgetune.escapes import shell_word
from edgetune.files import load_json, not_new, unwritable, whole_folder, write_json
from edgetune.planning import Plan
from edgetune.runs.lines import append_line, is_measured, is_step, read_lines
from edgetune.runs.lock import LOCK, locked, release
from edgetune.runs.place import HeldFolder, held

ELSEWHERE: Final = "move its folder elsewhere"

LARGEST_RECEIPT: Final = 64 << 20
"""Bytes of the account of a run's rows: it names every row that was dropped."""

_MARKS: Final = ("plan.yaml", "receipt.json")
"""Every run has both, from its first moment on; a plan alone may lie anywhere."""

RANKS: Final = "ranks.json"
"""What each of several ranks is and took, of a run that has some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The checkpoint that a run hands over: after how many steps, its validation loss, the base's.

    Without validation rows the losses are None.
    """

    step: int
    loss: float | None
    base_loss: float | None

    def __str__(self) -> str:
        """Return it as the end of a sentence about an adapter.

        >>> print(Kept(step=12, loss=0.5, base_loss=2.0))
        the checkpoint after step 12: validation loss 0.5000, the base's 2.0000
        """
        name = f"the checkpoint after step {self.step:,}"
        if self.loss is None or self.base_loss is None:
            return name
        return f"{name}: validation loss {self.loss:.4f}, the base's {self.base_loss:.4f}"


@dataclass(slots=True)
class RunFolder:
    """One run on disk; ``path`` follows it when it is moved while it is held."""

    path: Path
    _held: HeldFolder | None = field(default=None, compare=False)

    @staticmethod
    def check(path: Path) -> None:
        """Refuse a place that is taken or cannot be written, before any work is done.

        Raises:
            UsageError: with the reason and what to do.
        """
        try:
            if (path / "plan.yaml").exists():
                raise UsageError(
                    f"The run folder {path} exists already. Choose another with --output, or go "
                    f"on with this one: {RunFolder(path).resume_command}"
                )
            if because := not_new(path):
                raise _cannot_be_made(path, because)
            there = next(p for p in path.absolute().parents if p.exists())
            tempfile.TemporaryDirectory(prefix=".edgetune-", dir=there).cleanup()
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise _cannot_be_made(path, error) from None

    @classmethod
    def create(
        cls,
        path: Path,
        plan: Plan,
        receipt: Mapping[str, Any],
        fill: Callable[[RunFolder], None] = lambda _: None,
    ) -> RunFolder:
        """Make a new run folder, whole or not at all; ``fill`` may add to it.

        Raises:
            UsageError: if it is there already, or cannot be written.
        """
        try:
            place = path.resolve()
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(place) as temporary:
                plan.save(temporary / "plan.yaml")
                write_json(temporary / "receipt.json", receipt)
                (temporary / "checkpoints").mkdir()
                fill(cls(temporary))
        except OSError as error:
            raise _cannot_be_made(path, error) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return an existing run folder.

        Raises:
            UsageError: if it is none.
        """
        if not path.is_dir():
            raise UsageError(f"There is no run folder {path}.")
        if not (path / "plan.yaml").is_file():
            raise UsageError(f"{path} is not a run folder: it has no plan.yaml.")
        return cls(path)

    @property
    def plan(self) -> Path:
        """The plan that the run follows."""
        return self.path / "plan.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps and evaluations."""
        return self.path / "metrics.jsonl"

    @property
    def journal(self) -> Path:
        """One JSON object a line: decisions, measurements, recoveries, with their reasons."""
        return self.path / "journal.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, and a link to the best."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter in PEFT's layout."""
        return self.path / "adapter"

    @property
    def start(self) -> Path:
        """The adapter that the run goes on from, if it goes on from one."""
        return self.path / "start"

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return f"edgetune train --resume --output {shell_word(str(self.path))}"

    def finished_adapter(self) -> Path:
        """Return the adapter of a run that has come to its end.

        Raises:
            UsageError: if it has not.
        """
        if not self.adapter.is_dir():
            raise UsageError(
                f"The run {self.path} has no adapter: it has not finished, or none of its "
                f"checkpoints was better than the base. Continue it: {self.resume_command}"
            )
        return self.adapter

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here, and notice when the folder is taken away.

        Raises:
            UsageError: if another process is at work here.
            DiskError: if the folder cannot be written.
        """
        try:
            lock = locked(self.path / LOCK)
        except OSError as error:
            raise unwritable("The run", self.path, error, ELSEWHERE) from error
        try:
            with held(self.path) as folder:
                self._held = folder
                yield
        finally:
            self._held = None
            release(lock)

    def require_there(self) -> None:
        """Refuse to go on where the folder was deleted, moved or replaced by another.

        Raises:
            DiskError: saying where the folder is now; ``path`` is that place from now on.
        """
        folder = self._held
        if folder is None or folder.is_there():
            return
        place = folder.place()
        if place is None:
            raise DiskError(
                f"The run folder {self.path} was deleted while the run was at work, and its "
                "checkpoints with it. Train again."
            )
        before, self.path = self.path, place
        raise DiskError(f"The run folder {before} was moved to {place} while the run was at work.")

    def note(self, what: str, because: str, **facts: Any) -> None:
        """Add a line to the journal."""
        line = {"time": round(time.time(), 3), "what": what, "because": because, **facts}
        append_line(self.journal, line)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder."""
        write_json(self.path / name, value)

    def steps(self) -> Iterator[dict[str, Any]]:
        """Yield what the metrics say of each step; lines that say less are left out."""
        numbers = ("loss", "seconds", "tokens", "peak_bytes")
        return (line for line in read_lines(self.metrics) if _is(line, "step", numbers))

    def evaluations(self) -> Iterator[dict[str, Any]]:
        """Yield what the metrics say of each evaluation; lines that say less are left out."""
        return (line for line in read_lines(self.metrics) if _is(line, "eval", ("loss",)))

    def kept(self) -> Kept | None:
        """Return which checkpoint ``adapter/`` is, None if there is none or the journal lacks it."""
        notes = [line for line in read_lines(self.journal) if line.get("what") == "adapter written"]
        if not notes or not self.adapter.is_dir():
            return None
        step, loss = notes[-1].get("step"), notes[-1].get("loss")
        if not is_step(step):
            return None
        base = next((line["loss"] for line in self.evaluations() if line["step"] == 0), None)
        return Kept(step=step, loss=loss if is_measured(loss) else None, base_loss=base)

    def prompt_cut(self) -> str:
        """Return the end of the generation prompt that the run's answers were trained without."""
        cut = self._receipt().get("prompt_cut")
        return cut if isinstance(cut, str) else ""

    def labels(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the labels that were trained, and the names of those that were numbers."""
        receipt = self._receipt()
        labels, names = receipt.get("labels"), receipt.get("label_names")
        trained = labels.get("trained") if isinstance(labels, dict) else None
        return tuple(trained if isinstance(trained, dict) else ()), _texts(names)

    def _receipt(self) -> dict[str, Any]:
        """Return the account of the run's rows, nothing where it cannot be read."""
        try:
            receipt = load_json(self.path / "receipt.json", LARGEST_RECEIPT)
        except (OSError, ValueError):
            return {}
        return receipt if isinstance(receipt, dict) else {}

    def peak_bytes(self) -> int:
        """Return the highest peak of all steps, also of those before an interruption."""
        return max((line["peak_bytes"] for line in self.steps()), default=0)


def run_of(path: Path) -> Path | None:
    """Return the folder of the run that a path lies in, however deep; None if it lies in none."""
    folders = path.resolve().parents
    return next((x for x in folders if all((x / name).is_file() for name in _MARKS)), None)


def _is(line: Mapping[str, Any], event: str, numbers: Iterable[str]) -> bool:
    """Return whether a line of the metrics tells of an event after a step, with these numbers."""
    return (
        line.get("event") == event
        and is_step(line.get("step"))
        and all(is_measured(line.get(name)) for name in numbers)
    )


def _texts(found: Any) -> tuple[str, ...]:
    """Return a list of texts as a tuple, nothing where it is none."""
    whole = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return tuple(found) if whole else ()


def _cannot_be_made(path: Path, because: Exception | str) -> UsageError:
    reason = getattr(because, "strerror", None) or because
    return UsageError(
        f"The run folder {path} cannot be made: {reason}. Choose another with --output."
    )
