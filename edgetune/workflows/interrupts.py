"""What asks a command to stop: Ctrl-C, termination, a terminal that is closed.

A worker (:mod:`edgetune.workflows.supervise`) is asked by signals of its own and by its parent,
which passes on its own ones: Ctrl-C as SIGUSR1, what is meant to end the command as SIGUSR2.
Ctrl-C reaches both. It was asked as often as the one who knows of more says.
"""

from __future__ import annotations

import atexit
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

KINDS: Final = ("SIGINT", "SIGTERM", "SIGHUP")
CTRL_C: Final = "SIGINT"
PASSED_ON: Final = ("SIGUSR1", "SIGUSR2")
"""What a parent sends for Ctrl-C, and for all else."""

_CTRL_C, _CTRL_C_PASSED_ON, _END_PASSED_ON = (
    int(getattr(signal, name, 0)) for name in (CTRL_C, *PASSED_ON)
)


class Interrupts:
    """Counts what asks this process to stop; it stops at once, or at its next pause."""

    def __init__(self) -> None:
        """Listen to nothing yet."""
        self.count = 0
        self.ends = False
        """Whether the command was asked to end, not only (by Ctrl-C) what it does now."""
        self._own = self._passed_on = 0
        self._patient: Callable[[], None] | None = None

    def listen(self, *, passed_on: bool) -> None:
        """Begin to listen, to a parent too; what the process was told to ignore stays ignored."""
        for name in (*KINDS, *(PASSED_ON if passed_on else ())):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
        if passed_on:  # they were held back until now
            numbers = {getattr(signal, name) for name in (*KINDS, *PASSED_ON)}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            atexit.register(_hear_no_parent)

    @contextmanager
    def patiently(self, tell: Callable[[], None]) -> Iterator[Callable[[], bool]]:
        """Yield a function that says whether to stop; a second interrupt stops at once.

        ``tell`` is called in a signal handler, at the first interrupt.
        """
        numbers = [getattr(signal, name) for name in KINDS if hasattr(signal, name)]
        before = [(number, signal.getsignal(number)) for number in numbers]
        if not self._listening:
            self.listen(passed_on=False)
        begun, self._patient = self.count, tell
        try:
            yield lambda: self.count > begun
        finally:
            self._patient = None
            for number, handler in before:
                signal.signal(number, handler)

    @property
    def _listening(self) -> bool:
        return signal.getsignal(signal.SIGINT) == self._note

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # counted before anything is called: in `input` CPython (3.10 to 3.14) may run this for a
        # second signal while the exception of the first is set, and then every call fails
        if number in {_CTRL_C_PASSED_ON, _END_PASSED_ON}:
            self._passed_on += 1
        else:
            self._own += 1
        if number not in {_CTRL_C, _CTRL_C_PASSED_ON}:
            self.ends = True
        leave_closed_terminal()
        asked = max(self._own, self._passed_on)
        if asked == self.count:  # both were told of the same
            return
        self.count = asked
        if self._patient is None:
            raise KeyboardInterrupt
        tell, self._patient = self._patient, None
        tell()


def _hear_no_parent() -> None:
    """Ignore what a parent passes on to a worker that is about to end: it would be killed by it."""
    for name in PASSED_ON:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def leave_closed_terminal() -> None:
    """Send nowhere what is printed on a terminal that is gone: printing would fail."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(nowhere, descriptor)
