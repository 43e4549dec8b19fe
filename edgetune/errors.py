"""What can go wrong, each with the exit code that the command line gives it.

A message says what was asked, what was found, and what to do. All problems of one input are
reported at once. Anything else that escapes is a bug of ours (exit code 1).
"""

from __future__ import annotations

from typing import ClassVar


class EdgetuneError(Exception):
    """Root of everything that a user can cause or must be told."""

    exit_code: int = 1
    kind: ClassVar[str] = "bug"
    """What programs read in ``--json``; two kinds can share an exit code."""


class UsageError(EdgetuneError):
    """The command, a flag or a combination of flags makes no sense."""

    exit_code = 2
    kind = "usage"


class DiskError(EdgetuneError):
    """Something cannot be written: the disk is full, broken, read-only or gone."""

    exit_code = 2
    kind = "disk"


class NothingFitsError(EdgetuneError):
    """No plan within the memory satisfies what was asked; ``needed`` bytes would, where that is known."""

    exit_code = 3
    kind = "nothing-fits"

    def __init__(self, message: str, needed: int | None = None) -> None:
        """Take the message, and the bytes of the least choice."""
        super().__init__(message)
        self.needed = needed


class DataError(EdgetuneError):
    """The examples cannot be read, or would not train what they seem to."""

    exit_code = 4
    kind = "data"


class ModelError(EdgetuneError):
    """The model is missing, damaged or of a type that is not supported."""

    exit_code = 5
    kind = "model"


class NetworkError(EdgetuneError):
    """A hub cannot be asked, or does not answer as one."""

    exit_code = 5
    kind = "network"


class StoppedError(EdgetuneError):
    """The run was interrupted; its state is saved and can be resumed."""

    exit_code = 6
    kind = "stopped"


class LostRankError(StoppedError):
    """A process that trained along with this one ended, or does not answer any more."""

    kind = "lost-rank"


class OutOfMemoryError(EdgetuneError):
    """The device's memory ran out and no smaller shape was left to try."""

    exit_code = 7
    kind = "out-of-memory"


class CheckFailedError(EdgetuneError):
    """A result was made and then found to be wrong (merge, export, doctor)."""

    exit_code = 8
    kind = "check-failed"


class DivergedError(EdgetuneError):
    """The loss ran away, or the gradients stopped being finite numbers."""

    exit_code = 8
    kind = "diverged"


class NoImprovementError(EdgetuneError):
    """No state of a run predicts the validation rows better than the base model."""

    exit_code = 8
    kind = "no-improvement"
