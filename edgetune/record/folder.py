"""The run folder: where things lie, and the log files that only grow."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import UsageError
from edgetune.files import replacing, write_json


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @staticmethod
    def check(path: Path) -> None:
        """Refuse a place that is taken, before any work is done.

        Raises:
            UsageError: if something is there already.
        """
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UsageError(
                f"The run folder {path} exists already. Go on with it by --resume, "
                "or choose another with --output."
            )

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new run folder.

        Raises:
            UsageError: if it is there already, or cannot be written.
        """
        cls.check(path)
        try:
            (path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise UsageError(
                f"The run folder {path} cannot be made: {error.strerror}. "
                "Choose another with --output."
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return an existing run folder.

        Raises:
            UsageError: if it is none.
        """
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

    def finished_adapter(self) -> Path:
        """Return the adapter of a run that has come to its end.

        Raises:
            UsageError: if it has not.
        """
        if not self.adapter.is_dir():
            raise UsageError(
                f"The run {self.path} has not finished. Go on with it: "
                f"edgetune train --resume --output {self.path}"
            )
        return self.adapter

    def note(self, what: str, because: str, **facts: Any) -> None:
        """Add a line to the journal."""
        line = {"time": round(time.time(), 3), "what": what, "because": because, **facts}
        append_line(self.journal, line)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder."""
        write_json(self.path / name, value)

    def cut_metrics(self, step: int) -> int:
        """Drop metrics of later steps than ``step``, which will be taken again; return how many."""
        lines = read_lines(self.metrics)
        kept = [line for line in lines if line["step"] <= step]
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        return len(lines) - len(kept)


def append_line(path: Path, value: Any) -> None:
    """Add one JSON object to a log; it has left this process when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
