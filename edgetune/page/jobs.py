"""Commands that the page starts as processes of their own, which outlive it and are found again.

Each has a folder below ``.edgetune-view`` in the folder of the runs: what was started and as which
process, and what it printed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Final, Literal

from edgetune.errors import UsageError
from edgetune.files import load_json, unwritable, write_json
from edgetune.runs.lock import began, is_there

HOME: Final = ".edgetune-view"
FACTS: Final = "job.json"
OUT, SAID = "out.txt", "said.txt"
LARGEST: Final = 1 << 20
"""Bytes of what a job printed that are read."""
KEPT: Final = 50
"""Jobs that have ended and whose folders are kept."""
SECONDS_TO_SAVE: Final = 0.5
"""Between the signal that asks to stop and the one that means at once."""

Kind = Literal["train", "export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A command that was started for a run; ``began`` tells its process from a later one."""

    folder: Path
    kind: Kind
    run: str
    arguments: tuple[str, ...]
    started: float
    pid: int
    began: float

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return is_there(self.pid, self.began)

    @property
    def said(self) -> list[str]:
        """What it printed about its progress, line by line."""
        return _text(self.folder / SAID).splitlines()

    @property
    def result(self) -> dict[str, Any]:
        """The JSON that it printed at its end; nothing while it is at work, or if it died."""
        text = _text(self.folder / OUT)
        try:
            found = json.loads(text[text.index("{") :])
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def error(self) -> str:
        """Why it failed, empty if it did not or is at work."""
        if self.alive:
            return ""
        result = self.result
        if "error" in result:
            return str(result["error"].get("message", ""))
        if result:
            return ""
        last = self.said[-1:] or ["It said nothing."]
        return f"It ended without a result. {last[0]}"


class Jobs:
    """Starts jobs and knows those of earlier pages."""

    def __init__(self, folder: Path) -> None:
        """Look after the jobs of a folder of runs."""
        self._home = folder / HOME
        self._own: list[subprocess.Popen[bytes]] = []
        """Held so that they are waited for when they have ended."""
        self._lock = RLock()

    def start(self, kind: Kind, run: str, arguments: Sequence[str]) -> Job:
        """Start a command for a run.

        Raises:
            UsageError: if one is at work for it already.
            DiskError: if what it prints cannot be kept.
        """
        with self._lock:
            if any(job.alive for job in self.of(run)):
                raise UsageError(f"A command for {run} is at work already. Wait for it or stop it.")
            self._sweep()
            try:
                return self._started(kind, run, arguments)
            except OSError as error:
                raise unwritable("The command", self._home, error, "view another folder") from error

    def of(self, run: str) -> list[Job]:
        """Return the jobs of a run, the newest first."""
        return [job for job in self.all() if job.run == run]

    def all(self) -> list[Job]:
        """Return the jobs that are known, the newest first."""
        with self._lock:
            self._own = [process for process in self._own if process.poll() is None]
        try:
            names = sorted((path.name for path in self._home.iterdir()), reverse=True)
        except OSError:
            return []
        found = (_read(self._home / name) for name in names)
        return [job for job in found if job is not None]

    def _started(self, kind: Kind, run: str, arguments: Sequence[str]) -> Job:
        now = time.time()
        folder = self._home / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        with (folder / OUT).open("wb") as out, (folder / SAID).open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgetune", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=said,
                env=safe_environment(),
                start_new_session=True,  # the end of this page's terminal is none of its business
            )
        self._own.append(process)
        job = Job(
            folder=folder, kind=kind, run=run, arguments=tuple(arguments), started=now,
            pid=process.pid, began=began(process.pid),
        )  # fmt: skip
        write_json(folder / FACTS, {**asdict(job), "folder": folder.name})
        return job

    def _sweep(self) -> None:
        """Forget the oldest jobs that have ended."""
        for job in [job for job in self.all() if not job.alive][KEPT:]:
            shutil.rmtree(job.folder, ignore_errors=True)


def safe_environment() -> dict[str, str]:
    """Return the environment of a process in which the folder that it works in holds no modules."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def ask_to_stop(number: int) -> None:
    """Ask a training to stop after its step and save; a command that saves nothing stops.

    Not by the signal of Ctrl-C, which what a script started in the background ignores.
    """
    with suppress(ProcessLookupError):
        os.kill(number, signal.SIGTERM)


def stop_at_once(number: int, began_at: float) -> None:
    """Ask a command to stop, and again if it is still there a moment later."""
    for _ in range(2):
        if is_there(number, began_at):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGTERM)
            time.sleep(SECONDS_TO_SAVE)


def newest(jobs: Iterable[Job], kind: Kind) -> Job | None:
    """Return the newest job of a kind."""
    return next((job for job in jobs if job.kind == kind), None)


def _read(folder: Path) -> Job | None:
    """Return a job as its folder says, None if it does not."""
    try:
        plain = load_json(folder / FACTS, LARGEST)
        return Job(
            folder=folder,
            kind="export" if plain["kind"] == "export" else "train",
            run=str(plain["run"]),
            arguments=tuple(map(str, plain["arguments"])),
            started=float(plain["started"]),
            pid=int(plain["pid"]),
            began=float(plain["began"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _text(path: Path) -> str:
    """Return the end of a text file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LARGEST))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
