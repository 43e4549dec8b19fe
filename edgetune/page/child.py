"""A process beside the page that answers in lines of JSON, started on use and closed when idle.

What it loads (rows, a framework, a model) is gone with it. One request a time; each has a number,
and what comes of an older one is dropped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final

from edgetune.errors import EdgetuneError
from edgetune.page.jobs import safe_environment

Plain = dict[str, Any]

SECONDS_TO_END: Final = 3.0
SECONDS_TO_LOOK: Final = 5.0


class ChildError(EdgetuneError):
    """What a child says of an error, or that it died; ``kind`` is the error's own."""

    def __init__(self, message: str, kind: str = "bug") -> None:
        """Take over the message and the kind."""
        super().__init__(message)
        self.of_kind = kind


class Child:
    """A child process that runs a module."""

    def __init__(self, module: str, idle_seconds: float) -> None:
        """Start nothing yet."""
        self._module = module
        self._idle = idle_seconds
        self._asking = Lock()
        self._writing = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: SimpleQueue[Plain | None] = SimpleQueue()
        self._number = 0
        self._used = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def ask(self, request: Plain) -> Plain:
        """Return the one answer to a request.

        Raises:
            ChildError: if it is an error, or the process ended.
        """
        answers = [answer for answer in self.stream(request) if not answer.get("done")]
        return answers[-1]

    def stream(self, request: Plain) -> Iterator[Plain]:
        """Yield the answers to a request up to the one that says ``done``.

        Raises:
            ChildError: if one is an error, or the process ended.
        """
        with self._asking:
            process = self._started()
            self._number += 1
            self._write(process, {**request, "number": self._number})
            while True:
                answer = self._answers.get()
                if answer is None:
                    raise ChildError(_ended(process))
                self._used = time.monotonic()
                if answer.pop("number", None) != self._number:
                    continue
                if "error" in answer:
                    raise ChildError(answer["error"]["message"], answer["error"]["kind"])
                yield answer
                if answer.get("done"):
                    return

    def tell(self, message: Plain) -> None:
        """Say something while a request is at work, if the process is there."""
        if (process := self._process) is not None and process.poll() is None:
            self._write(process, message)

    def close(self) -> None:
        """End the process and free its memory."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=safe_environment(),
            start_new_session=True,
        )
        self._process, self._answers, self._used = process, SimpleQueue(), time.monotonic()
        Thread(target=_read, args=(process, self._answers), daemon=True).start()
        Thread(target=self._close_when_idle, args=(process,), daemon=True).start()
        return process

    def _write(self, process: subprocess.Popen[str], message: Plain) -> None:
        with self._writing, suppress(OSError, ValueError):  # its end is told by its answers
            assert process.stdin is not None
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _close_when_idle(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            time.sleep(min(SECONDS_TO_LOOK, self._idle / 4))
            if time.monotonic() - self._used < self._idle or not self._asking.acquire(False):
                continue
            try:
                if self._process is process:
                    self.close()
            finally:
                self._asking.release()


def _read(process: subprocess.Popen[str], answers: SimpleQueue[Plain | None]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            with suppress(ValueError):
                answers.put(json.loads(line))
    answers.put(None)


def _ended(process: subprocess.Popen[str]) -> str:
    code = process.wait()
    if code == -9:
        return "The process was killed, most likely for want of memory. Close other programs."
    return (
        f"The process ended with exit code {code}. Its last words are in the terminal of the page."
    )
