"""Memory that runs out at a chosen moment of a step, and what is left of the step then.

A fault counts what a step asks for and fails one of its requests (or all from one on, until the
error has left the step). Afterwards the session must stand where it stood, the error be the
protocol's, and the step, taken again, give what it gives undisturbed: all bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from edgetune.backend import DeviceOutOfMemoryError, Session, StepResult, Tensors

Step = Callable[[Session], StepResult]
State = tuple[Tensors, Tensors]
FaultAt = Callable[[int], AbstractContextManager[Any]]
"""Makes the fault that fails the request of this number, counted from 1; 0 fails none."""


@dataclass
class Tally:
    """What became of the steps that were disturbed."""

    undone: int = 0
    """Steps that failed with the protocol's error and had changed nothing."""
    finished: int = 0
    """Steps that came to their end all the same."""
    wrong: list[str] = field(default_factory=list)

    @property
    def injected(self) -> int:
        """All of them."""
        return self.undone + self.finished + len(self.wrong)

    def __iadd__(self, other: Tally) -> Tally:
        """Add another count."""
        self.undone += other.undone
        self.finished += other.finished
        self.wrong += other.wrong
        return self

    def __str__(self) -> str:
        """Return the counts in words."""
        return (
            f"{self.injected} injected: {self.undone} undone, {self.finished} finished, "
            f"{len(self.wrong)} wrong"
        )


def state_of(session: Session) -> State:
    """Return everything that a step changes."""
    return session.adapter_tensors(), session.optimizer_tensors()


def requests(session: Session, step: Step, fault_at: FaultAt) -> int:
    """Return how many requests a step makes; the step is not kept."""
    before = state_of(session)
    with fault_at(0) as fault:
        step(session)
    session.restore(*before)
    return int(fault.count)


def spread(count: int, wanted: int) -> list[int]:
    """Return ``wanted`` of the numbers from 1 to ``count``, evenly; all if there are fewer.

    >>> spread(9, 3), spread(2, 5)
    ([1, 5, 9], [1, 2])
    """
    if wanted >= count:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def attack(
    session: Session,
    step: Step,
    fault_at: FaultAt,
    points: Iterable[int],
    *,
    at_rest: Callable[[Session], bool] = lambda _: True,
) -> Tally:
    """Disturb the session's next step at each of ``points``; it stands where it stood at the end.

    ``at_rest`` tells whether what a session keeps besides its state is as between steps.
    """
    before = state_of(session)
    expected = step(session), state_of(session)
    tally = Tally()
    for point in points:
        session.restore(*before)
        try:
            with fault_at(point):
                result = step(session)
            undone = False
        except DeviceOutOfMemoryError:
            undone = True
        except Exception as error:  # noqa: BLE001  # whatever escapes is what is looked for
            tally.wrong.append(f"{point}: escaped as {error!r}")
            continue
        if undone:
            if not (same(state_of(session), before) and at_rest(session)):
                tally.wrong.append(f"{point}: something has changed")
                continue
            result = step(session)
        if result != expected[0] or not same(state_of(session), expected[1]):
            tally.wrong.append(f"{point}: the repeated step differs")
        elif undone:
            tally.undone += 1
        else:
            tally.finished += 1
    session.restore(*before)
    return tally


def same(one: State, other: State) -> bool:
    """Tell whether two states are equal, bit for bit."""
    return all(
        a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)
        for a, b in zip(one, other, strict=True)
    )
