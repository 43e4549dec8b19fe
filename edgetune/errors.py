"""What can go wrong, each with the exit code that the command line gives it.

A message says what was asked, what was found, and what to do. All problems of one input are
reported at once. Anything else that escapes is a bug of ours (exit code 1).
"""

from __future__ import annotations

from typing import ClassVar


class EdgetuneError(Exception):
    """Root of everything that a user can cause or must be told."""

    exit_code: ClassVar[int] = 1


class UsageError(EdgetuneError):
    """The command, a flag or a combination of flags makes no sense."""

    exit_code = 2


class NothingFitsError(EdgetuneError):
    """No plan within the memory satisfies what was asked."""

    exit_code = 3


class DataError(EdgetuneError):
    """The examples cannot be read, or would not train what they seem to."""

    exit_code = 4


class ModelError(EdgetuneError):
    """The model is missing, damaged or of a type that is not supported."""

    exit_code = 5


class StoppedError(EdgetuneError):
    """The run was interrupted; its state is saved and can be resumed."""

    exit_code = 6


class OutOfMemoryError(EdgetuneError):
    """The device's memory ran out and no smaller shape was left to try."""

    exit_code = 7


class CheckFailedError(EdgetuneError):
    """A result was made and then found to be wrong (merge, export, doctor)."""

    exit_code = 8


class DivergedError(EdgetuneError):
    """The loss or the gradients stopped being finite numbers."""

    exit_code = 8
