"""The worker's side of :mod:`edgetune.workflows.supervise`: a process that is watched.

The parent's words come once, in a variable of the environment. The worker's go through a pipe, a
line of JSON each: how to go on without it, and how far it is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from threading import Thread
from typing import Any, Final

VARIABLE: Final = "EDGETUNE_WORKER"
DIE_WITH_PARENT: Final = 1
"""``PR_SET_PDEATHSIG`` of prctl(2)."""
SIGKILL: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The worker before this one died: go on with at most ``rows`` rows at once."""

    rows: int
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the parent tells a worker: file descriptors of two pipes, itself, what happened.

    The worker writes reports into one pipe. The other is never written to: it ends with the
    parent.
    """

    report: int
    life: int
    parent: int
    recovery: Recovery | None = None

    def environment(self) -> dict[str, str]:
        """Return the variable in which the worker finds this."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def taken(cls, environment: MutableMapping[str, str]) -> Order | None:
        """Take the variable away, so that no process further down finds it."""
        text = environment.pop(VARIABLE, None)
        if text is None:
            return None
        plain: dict[str, Any] = json.loads(text)
        recovery = plain.pop("recovery")
        return cls(**plain, recovery=Recovery(**recovery) if recovery else None)


class Worker:
    """This process, if a parent watches it."""

    def __init__(self, order: Order) -> None:
        """Take an order: from now on this process ends with its parent."""
        self.recovery = order.recovery
        self._report = order.report
        for descriptor in (order.report, order.life):
            os.set_inheritable(descriptor, False)
        end_with(order.parent, order.life)

    @classmethod
    def here(cls) -> Worker | None:
        """Return this process as a worker; None if nobody watches it."""
        order = Order.taken(os.environ)
        return None if order is None else cls(order)

    def can_resume(
        self, arguments: Sequence[str], *, command: str, rows: int, strict: bool
    ) -> None:
        """Report how to go on if this process dies.

        ``arguments`` are those of the command line, ``command`` is what a user would type;
        ``rows`` go through the model at once, ``strict`` says that fewer are no way out.
        """
        self._say(resume=list(arguments), command=command, rows=rows, strict=strict)

    def met(self) -> None:
        """Report that the ranks have met."""
        self._say(met=True)

    def computes(self, rows: int) -> None:
        """Report that fewer rows go through the model at once."""
        self._say(rows=rows)

    def saved(self, step: int) -> None:
        """Report a checkpoint."""
        self._say(saved=step)

    def _say(self, **facts: object) -> None:
        with suppress(OSError):  # the parent is gone, and this process with it
            os.write(self._report, json.dumps(facts).encode() + b"\n")


@dataclass(slots=True)
class Report:
    """What the workers of a command have reported so far."""

    resume: list[str] | None = None
    command: str = ""
    rows: int = 0
    strict: bool = False
    saved: int = 0
    """The step of the newest checkpoint."""
    met: bool = False
    """Whether the workers have met, where there are several."""

    def add(self, line: bytes) -> None:
        """Take in one line; half a line, written by a process that died, is left out."""
        with suppress(ValueError):
            facts: Mapping[str, Any] = json.loads(line)
            for name, value in facts.items():
                setattr(self, name, value)


def end_with(parent: int, life: int) -> None:
    """Let this process end when its parent does, however that ends.

    Linux does it. Elsewhere a thread waits for the end of the pipe ``life``.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, SIGKILL)
    else:
        end_with_pipe(life)
    if os.getppid() != parent:  # it was faster
        os._exit(SIGKILL)


def end_with_pipe(life: int) -> None:
    """Let this process end when nobody holds the other end of a pipe any more."""

    def wait() -> None:
        while os.read(life, 1):
            pass
        os._exit(SIGKILL)

    Thread(target=wait, name="edgetune-parent", daemon=True).start()
