"""A world whose ranks are threads of one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import LostRankError
from edgetune.shares import by_halves

T = TypeVar("T")

SECONDS = 60.0


class Meeting:
    """Where the threads of a world exchange what each gives."""

    def __init__(self, size: int) -> None:
        """Wait for so many."""
        self.size = size
        self._given: dict[int, object] = {}
        self._found: list[object] = []
        self._rounds = 0
        self._left = False
        self._changed = Condition()

    def exchange(self, rank: int, mine: T) -> list[T]:
        """Return what every rank gave, by rank."""
        with self._changed:
            self._given[rank] = mine
            if len(self._given) == self.size:
                self._found = [self._given[number] for number in range(self.size)]
                self._given = {}
                self._rounds += 1
                self._changed.notify_all()
            else:
                now = self._rounds
                self._changed.wait_for(lambda: self._left or self._rounds > now, SECONDS)
                if self._rounds == now:
                    raise LostRankError("Another rank ended.")
            return self._found  # type: ignore[return-value]

    def leave(self) -> None:
        """Let those that wait do so no more."""
        with self._changed:
            self._left = True
            self._changed.notify_all()


class ThreadWorld:
    """One rank of a world of threads."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        """Join."""
        self.rank, self.size, self._meeting = rank, meeting.size, meeting
        self.sent = 0
        self.waited = 0.0

    def gather(self, numbers: Sequence[float]) -> list[tuple[float, ...]]:
        return self._exchanged(tuple(numbers))

    def add(self, numbers: NDArray[np.float32]) -> None:
        parts = self._exchanged(numbers.copy())
        self.sent += numbers.nbytes
        numbers[:] = by_halves(parts, np.add)

    def spread(self, data: bytes) -> bytes:
        return self._exchanged(data)[0]

    def close(self) -> None:
        self._meeting.leave()

    def _exchanged(self, mine: T) -> list[T]:
        begun = time.perf_counter()
        found = self._meeting.exchange(self.rank, mine)
        self.waited += time.perf_counter() - begun
        return found


def in_ranks(size: int, work: Callable[[ThreadWorld], T]) -> list[T | BaseException]:
    """Return what ``work`` returns or raises on every rank; one that ends leaves the world."""
    meeting, found = Meeting(size), [None] * size

    def rank(number: int) -> None:
        world = ThreadWorld(number, meeting)
        try:
            found[number] = work(world)
        except Exception as error:  # noqa: BLE001 (whatever it is, the test looks at it)
            found[number] = error
            world.close()

    threads = [Thread(target=rank, args=(number,), daemon=True) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
        assert not thread.is_alive(), "a rank hangs"
    return found
