"""A command on a terminal of its own: what is typed there, and what is read there."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

SECONDS = 240.0
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """Runs `edgetune` on a pseudo-terminal of 80 columns, unless ``more`` of the environment differs."""

    def __init__(self, *arguments: str, cwd: Path, more: Mapping[str, str] | None = None) -> None:
        """Start the command."""
        self._fd, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgetune", *arguments],
            cwd=cwd,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=_control,  # noqa: PLW1509 (no other thread forks here)
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm", **(more or {})},
        )
        os.close(theirs)
        self.read = ""

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._fd, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until a text was printed since the last call.

        Raises:
            AssertionError: if it is not printed.
        """
        found, deadline = "", time.monotonic() + SECONDS
        while text not in found:
            if time.monotonic() > deadline:
                self._kill()
                raise AssertionError(f"{text!r} was not printed; {found!r} was")
            if self._ready():
                found += self._some()
        self.read += found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started alone."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Read to the end and return the exit code.

        Raises:
            AssertionError: if the command does not end.
        """
        deadline = time.monotonic() + SECONDS
        while True:
            if time.monotonic() > deadline:
                self._kill()
                raise AssertionError(f"the command did not end; it printed {self.read!r}")
            if not self._ready():
                continue
            try:
                found = self._some()
            except OSError:  # how Linux says that nobody is on the terminal any more
                break
            if not found:
                break
            self.read += found
        code = self.process.wait(SECONDS)
        os.close(self._fd)
        return code

    def _kill(self) -> None:
        """End a command that hangs, so that the tests behind this one meet nothing of it."""
        self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def _ready(self) -> bool:
        return bool(select.select([self._fd], [], [], 2.0)[0])

    def _some(self) -> str:
        return os.read(self._fd, 65536).decode(errors="replace")


def _control() -> None:
    """Make the terminal that of a session of its own, so that Ctrl-C goes to its processes."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
