"""The process that a command runs in: who watches it, and what asks it to stop."""

from __future__ import annotations

from dataclasses import dataclass, field

import click

from edgetune.workflows.interrupts import Interrupts
from edgetune.workflows.worker import Worker


@dataclass(frozen=True, slots=True)
class Process:
    """What a command has to know of its process; ``worker`` is None if nobody watches it."""

    worker: Worker | None = None
    interrupts: Interrupts = field(default_factory=Interrupts)

    @classmethod
    def here(cls) -> Process:
        """Take this process over from a parent, if it has one."""
        process = cls(Worker.here())
        if process.worker is not None:
            process.interrupts.listen(passed_on=True)
        return process


def this_process() -> Process:
    """Return the process of the command that is running."""
    return click.get_current_context().find_object(Process) or Process()
