"""A command in a process of its own, and a parent that outlives it.

Memory that runs out for good ends a process by a signal: the system kills it, or native code
that gets none aborts. Nothing inside can tell that. A small parent, which imports no framework,
therefore starts the command once more as its *worker* and waits. If the worker dies, the parent
says so and starts another one from the newest checkpoint, with half as many rows at once.

The worker has the parent's terminal, files and process group. What a terminal or a service sends
to the group reaches both; what the parent alone is sent it passes on by signals of its own, so that
the worker can tell the two apart (:mod:`edgetune.workflows.interrupts`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Final

from edgetune.errors import EdgetuneError, OutOfMemoryError, StoppedError
from edgetune.workflows.interrupts import KINDS, PASSED_ON, leave_closed_terminal
from edgetune.workflows.launching import first_dead, meeting
from edgetune.workflows.worker import Order, Recovery, Report

RESTARTS: Final = 3
"""Workers that are started one after the other without a new checkpoint from one of them."""

DEATHS: Final = {
    "SIGKILL": "was killed from outside",
    "SIGSEGV": "crashed in native code",
    "SIGBUS": "crashed in native code",
    "SIGABRT": "was aborted in native code",
}
"""How a worker can die without anybody having asked it to stop."""

_WATCHDOG: Final = "; macOS ends work that keeps the display waiting: docs/laptop.md"
"""What aborts MLX on a Mac most often, besides memory."""

SECONDS_TO_READ: Final = 2.0
"""How long the reports of a dead worker are waited for; a process that it left may hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a worker ended: its exit code, or the negative number of a signal."""

    code: int
    killed_by_system: bool
    rank: int | None = None
    """Which of several workers it was that died first."""

    @property
    def death(self) -> str | None:
        """What a worker died of that nobody asked to stop, in words."""
        name = signal.Signals(-self.code).name if self.code < 0 else ""
        if name not in DEATHS:
            return None
        which = "" if self.rank is None else f"of rank {self.rank} "
        if self.killed_by_system:
            return f"{which}was killed by the system because memory ran out"
        watchdog = sys.platform == "darwin" and name == "SIGABRT"
        return f"{which}{DEATHS[name]} ({name}{_WATCHDOG if watchdog else ''})"


def can_supervise() -> bool:
    """Return whether this system has what a parent and its worker need."""
    return os.name == "posix"


def supervise(arguments: Sequence[str], tell: Callable[[str], None], ranks: int = 1) -> int:
    """Run a command line in workers and return the exit code; ``tell`` shows one line.

    With several ``ranks`` so many workers train together; if one dies, all of them end.

    Raises:
        OutOfMemoryError: if a worker died and there is nothing (more) to try.
        StoppedError: if a worker died after it had been asked to stop.
        EdgetuneError: if native code crashed in a command that saves no state.
    """
    parent, report, recovery, restarts = Parent(), Report(), None, 0
    with parent.listening():
        while True:
            saved = report.saved
            ended = parent.run(arguments, recovery, report, ranks)
            if ended.death is None:
                return ended.code if ended.code >= 0 else 128 - ended.code
            restarts = 0 if report.saved > saved else restarts
            if report.resume is None or report.strict or parent.asked or restarts == RESTARTS:
                raise _given_up(ended, report, restarts, stopped=parent.asked > 0)
            restarts, report.rows = restarts + 1, max(1, report.rows // 2)
            said = f"The training process {ended.death}"
            tell(
                f"{said}. Resuming from step {report.saved} with at most {report.rows} rows at "
                "once."
            )
            arguments, recovery = report.resume, Recovery(rows=report.rows, because=said)


def _given_up(ended: Ended, report: Report, restarts: int, *, stopped: bool) -> EdgetuneError:
    """Return the error that ends a command whose worker has died."""
    if report.resume is None:
        if stopped:
            return StoppedError("Stopped.")
        if ended.code == -signal.SIGKILL:
            return OutOfMemoryError(
                f"The process of this command {ended.death}. Close other programs and run it "
                "again, with a smaller --memory if it takes one."
            )
        return EdgetuneError(
            f"The process of this command {ended.death}. That is a fault of a library or of the "
            "machine; run it again with --debug, and report it if it stays."
        )
    said = f"The training process {ended.death}"
    if stopped:
        return StoppedError(
            f"{said} while it stopped. Step {report.saved} is saved. Continue with: {report.command}"
        )
    tries = f" {restarts + 1} times without a new checkpoint" if restarts else ""
    because = "; --strict allows no fewer rows at once" if report.strict else ""
    return OutOfMemoryError(
        f"{said}{tries}{because}. Step {report.saved} is saved: close other programs and go on "
        f"with: {report.command}"
    )


@dataclass(slots=True)
class Parent:
    """Starts workers, one after the other, and passes on what asks them to stop."""

    asked: int = 0
    """How often this process was asked to stop."""
    _ends: bool = False
    """Whether that was more than Ctrl-C."""
    _workers: list[int] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Pass on to the worker what this process is sent; what was ignored stays so."""
        numbers = [getattr(signal, name) for name in KINDS]
        numbers = [x for x in numbers if signal.getsignal(x) is not signal.SIG_IGN]
        before = [signal.signal(number, self._ask) for number in numbers]
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, no exit code would be kept
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def run(
        self,
        arguments: Sequence[str],
        recovery: Recovery | None,
        report: Report,
        ranks: int = 1,
    ) -> Ended:
        """Run workers to their end; what they report is added to what those before them did."""
        from_worker, report_end = os.pipe()
        life, own_end = os.pipe()
        report.met = False
        order = Order(report=report_end, life=life, parent=os.getpid(), recovery=recovery)
        with meeting(ranks) as places:
            processes: list[subprocess.Popen[bytes]] = []
            try:
                with _held_back():
                    for place in places:
                        process = subprocess.Popen(
                            [*this_command(), *arguments],
                            pass_fds=(report_end, life),
                            env={**os.environ, **order.environment(), **place},
                        )
                        processes.append(process)
                        self._workers.append(process.pid)
                    if self.asked:  # while there was no worker
                        self._pass_on()
            finally:
                os.close(report_end)
                os.close(life)
            kills = system_kills()
            reader = Thread(target=_read, args=(from_worker, report), daemon=True)
            reader.start()
            first = first_dead(processes, lambda: report.met) if ranks > 1 else None
            code = processes[first or 0].wait()
            self._workers.clear()
        reader.join(SECONDS_TO_READ)
        os.close(own_end)
        by_system = code == -signal.SIGKILL and system_kills() > kills
        return Ended(code=code, killed_by_system=by_system, rank=first)

    def _ask(self, number: int, _frame: object) -> None:
        self.asked += 1
        self._ends = self._ends or number != signal.SIGINT
        leave_closed_terminal()
        self._pass_on()

    def _pass_on(self) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker, getattr(signal, PASSED_ON[self._ends]))


def this_command() -> list[str]:
    """Return how this program was started, without its arguments."""
    given = sys.argv[1:]
    head = sys.orig_argv[1 : len(sys.orig_argv) - len(given)]
    if not head or sys.orig_argv[len(sys.orig_argv) - len(given) :] != given:
        head = ["-m", "edgetune"]  # another program called us
    return [sys.executable, *head]


def system_kills() -> int:
    """Return how many processes the system has killed for want of memory, as it counts them."""
    from edgetune.device.cgroup import kills_for_memory
    from edgetune.device.system import this_system

    return kills_for_memory(this_system())


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back: a worker gets them when it has handlers for them, this process after."""
    numbers = {getattr(signal, name) for name in (*KINDS, *PASSED_ON)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(descriptor: int, report: Report) -> None:
    with open(descriptor, "rb") as lines:
        for line in lines:
            report.add(line)
