"""Commands in forked children of a process that has the framework imported, and their deaths.

A child costs a few milliseconds where a new interpreter would take seconds. The parent computes
nothing, so that there are no threads for a fork to lose.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

LONGEST = 180.0
"""Seconds after which a child hangs."""

MODULES = ".modules"
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "shutil.rmtree"}


@dataclass(frozen=True)
class Child:
    """What is done to a child: a signal ``after`` seconds, or at its ``write``-th write, or a disk
    on which no file grows beyond ``room`` bytes."""

    number: int = 0
    after: float | None = None
    write: int | None = None
    room: int | None = None


@dataclass(frozen=True)
class End:
    """How a child ended: its exit code, or the negative number of a signal; and how long it took."""

    code: int
    seconds: float
    told: str


def prepare() -> None:
    """Set what the frameworks read when they are imported, and let small files be cached."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from edgetune.data import read

    read.CACHED_FROM = 0  # rows of any size are tokenized into the cache


def run(arguments: Sequence[str], place: Path, child: Child | None = None) -> End:
    """Run a command line in a child at a place, doing to it what ``child`` says."""
    child, log = child or Child(), place / ".log"
    begun = time.monotonic()
    pid = os.fork()
    if not pid:
        _work(arguments, place, log, child)
    if child.after is not None:
        time.sleep(child.after)
        with suppress(ProcessLookupError):
            os.kill(pid, child.number)
            if child.number in (signal.SIGSTOP, signal.SIGTSTP):
                time.sleep(0.05)
                os.kill(pid, signal.SIGCONT)
    code = _wait(pid, begun)
    told = log.read_text("utf-8", errors="replace") if log.exists() else ""
    return End(code, time.monotonic() - begun, told[-2000:])


def import_as(place: Path) -> None:
    """Import what the last command at a place had imported when it ended; nothing is computed.

    Kernels are compiled: a child whose disk is full could not, and would round as their text does.
    """
    for name in (place / MODULES).read_text("utf-8").split():
        with suppress(Exception):  # names that lazy modules made up
            import_module(name)
    if (kernels := sys.modules.get("edgetune_torch.cpu_kernels")) is not None:
        kernels.library()


def _wait(pid: int, begun: float) -> int:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - begun > LONGEST:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 1000
        time.sleep(0.005)


def _work(arguments: Sequence[str], place: Path, log: Path, child: Child) -> None:
    """Become the command; never return."""
    code = 1
    try:
        os.chdir(place)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(out, descriptor)
        os.environ["EDGETUNE_CACHE"] = str(place / "cache")
        tempfile.tempdir = str(place)
        if child.write is not None:
            sys.addaudithook(_dying_at(child.write, child.number))
        if child.room is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (child.room, resource.RLIM_INFINITY))
        from edgetune.cli import run

        code = run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        if child == Child():
            Path(MODULES).write_text("\n".join(sys.modules), "utf-8")
    finally:
        os._exit(code)


def _dying_at(write: int, number: int) -> Callable[[str, tuple[object, ...]], None]:
    left = write

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and bool(int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR))
        if writes or event in WRITES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    return count
