"""Where a run stands, as its journal and its lock say."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.report.contents import Plain, Status, figure

_KINDS = {"stopped": 6, "out-of-memory": 7, "torn-state": 7, "diverged": 8, "disk": 2}
"""What ends a run early, with the exit code of its command."""


def status_of(journal: Sequence[Plain], *, running: bool, finished: bool) -> Status:
    """Return where a run stands.

    ``running`` is whether a process is at work in its folder, ``finished`` whether all steps were
    taken and its adapter is there.
    """
    ended = _ended(journal)
    if ended is not None:
        return ended
    if running:
        return Status(kind="running")
    if finished:
        return Status(kind="finished")
    if any(note.get("what") not in {"planned", "goes on from an adapter"} for note in journal):
        because = "It ended without a word: its process was killed, or the machine went off."
        return Status(kind="interrupted", because=because)
    return Status(kind="planned")


def _ended(journal: Sequence[Plain]) -> Status | None:
    """Return how a run ended, None if it did not since it was last resumed."""
    found: Status | None = None
    for note in journal:
        match note.get("what"):
            case "resumed":
                found = None
            case "ended early":
                found = _early(note)
            case "no adapter":
                because = "No checkpoint is better than the base model."
                found = Status(kind="failed", because=because, exit_code=8)
            case "adapter written" if found is None:
                found = Status(kind="finished")
    return found


def _early(note: Plain) -> Status:
    because = str(note.get("because", ""))
    kind = str(note.get("kind") or ("stopped" if because.startswith("Stopped") else ""))
    code = figure(note, "exit_code")
    exit_code = int(code) if code is not None else _KINDS.get(kind)
    return Status(
        kind="stopped" if kind == "stopped" else "failed", because=because, exit_code=exit_code
    )
