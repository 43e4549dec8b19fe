"""Several processes that train one adapter together.

Each is a *rank* of one *world*: it holds the whole base, takes its share of the micro-batches of
every step and of the evaluation, and only sums travel. All ranks decide the same, because all that
they decide from is the same: losses are added up in one order, and what only one of
them knows (memory that ran out, a wish to stop) is asked of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import add
from pathlib import Path
from threading import TIMEOUT_MAX as LONGEST
from threading import Thread
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from edgetune.errors import UsageError
from edgetune.shares import by_halves

if TYPE_CHECKING:  # whoever only starts ranks needs no arrays
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

RANK, WORLD, LOCAL_RANK, LOCAL_WORLD = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
"""The variables in which torchrun, accelerate and others say which rank a process is."""

MLX_RANK, MLX_HOSTS = "MLX_RANK", "MLX_HOSTFILE"
"""Those of mlx.launch: the rank, and a file with a list of the addresses of every rank."""

STORE: Final = "EDGETUNE_RANKS"
"""The variable in which `edgetune train --nproc` names the file through which its ranks meet."""


MOST_RANKS: Final = 64
"""Processes that one command may start."""


def started_as_rank(environment: Mapping[str, str]) -> bool:
    """Tell whether somebody started this process as one of several."""
    return MLX_RANK in environment or environment.get(WORLD, "1") != "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which rank of how many a process is; ``local`` ones share this machine.

    ``store`` is the file through which ranks of one machine meet; None: by the variables
    ``MASTER_ADDR`` and ``MASTER_PORT``, as torchrun sets them.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    store: str | None = None

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> Place | None:
        """Return the place that the environment gives this process, None if it is alone.

        Raises:
            UsageError: if the variables contradict each other.
        """
        if not started_as_rank(environment):
            return None
        if WORLD not in environment:
            environment = _of_launcher(environment)
        try:
            rank, world = int(environment[RANK]), int(environment[WORLD])
            local_rank = int(environment.get(LOCAL_RANK, 0))
            local_world = int(environment.get(LOCAL_WORLD, 1))
        except (KeyError, ValueError):
            found = {name: environment.get(name) for name in (RANK, WORLD, LOCAL_RANK, LOCAL_WORLD)}
            raise UsageError(
                f"{WORLD} says that several processes train together, but these variables do not "
                f"say which one this is: {found}. Start them with torchrun, or with --nproc."
            ) from None
        if not 0 <= rank < world:
            raise UsageError(f"{RANK} is {rank} and {WORLD} {world}: ranks count from 0.")
        return cls(
            rank=rank,
            world=world,
            local_rank=local_rank,
            local_world=local_world,
            store=environment.get(STORE),
        )

    def environment(self) -> dict[str, str]:
        """Return the variables in which a process finds this."""
        return {
            RANK: str(self.rank),
            WORLD: str(self.world),
            LOCAL_RANK: str(self.local_rank),
            LOCAL_WORLD: str(self.local_world),
            **({} if self.store is None else {STORE: self.store}),
        }


def _of_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables for mlx.launch's; every rank counts as one on its own machine.

    Raises:
        UsageError: if its list of hosts cannot be read.
    """
    try:
        hosts = json.loads(Path(environment[MLX_HOSTS]).read_text("utf-8"))
        return {RANK: environment[MLX_RANK], WORLD: str(len(hosts))}
    except (KeyError, OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{MLX_RANK} is set, but {MLX_HOSTS} names no list of hosts: {error!r}. "
            "Start the ranks with mlx.launch, or with --nproc."
        ) from None


class World(Protocol):
    """The ranks that train together, as one of them sees them.

    Every function waits for all ranks, which must call the same ones in the same order.

    Raises:
        LostRankError: naming the ranks that ended or did not answer in time.
    """

    @property
    def rank(self) -> int:
        """The number of this one."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def waited(self) -> float:
        """Seconds that this one has spent waiting for the others and for the network."""

    def gather(self, numbers: Sequence[float]) -> list[tuple[float, ...]]:
        """Return the numbers of every rank, by rank; all give as many."""

    def add(self, numbers: NDArray[np.float32]) -> None:
        """Replace an array (N,) on every rank by the sum over all ranks, the same bits on each.

        They are added by halves: :func:`edgetune.shares.by_halves`.
        """

    def spread(self, data: bytes) -> bytes:
        """Return what rank 0 gave; what the others give is not looked at."""

    def close(self) -> None:
        """Leave."""


class Alone:
    """The world of a process that trains by itself."""

    rank = 0
    size = 1
    waited = 0.0

    def gather(self, numbers: Sequence[float]) -> list[tuple[float, ...]]:
        """Return the own numbers."""
        return [tuple(numbers)]

    def add(self, numbers: NDArray[np.float32]) -> None:
        """Leave the array as it is."""

    def spread(self, data: bytes) -> bytes:
        """Return the own bytes."""
        return data

    def close(self) -> None:
        """Do nothing."""


ALONE: Final = Alone()


def interruptible(work: Callable[[], T], timeout: float | None = None) -> T:
    """Return what waiting for others comes to, in a thread of its own: a signal ends the wait here.

    Libraries wait in native code, where no signal handler of Python runs.

    Raises:
        TimeoutError: if it takes longer than ``timeout`` seconds; it goes on all the same.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def compute() -> None:
        try:
            answers.append(work())
        except Exception as error:  # noqa: BLE001 (it is raised where it is waited for)
            errors.append(error)

    thread = Thread(target=compute, name="edgetune-ranks", daemon=True)
    thread.start()
    thread.join(LONGEST if timeout is None else timeout)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError
    return answers[0]


def summed(world: World, numbers: Sequence[float]) -> list[float]:
    """Return the sums over all ranks, added by halves."""
    return [by_halves(column, add) for column in zip(*world.gather(numbers), strict=True)]


def most(world: World, number: float) -> float:
    """Return the largest number of any rank."""
    return max(each[0] for each in world.gather((number,)))


def told(world: World, text: str) -> list[str]:
    """Return a short text of every rank, by rank."""
    own = text.encode()
    longest = int(most(world, len(own)))
    every = world.gather(tuple(own.ljust(longest)))
    return [bytes(map(int, each)).decode().rstrip() for each in every]


def anybody(world: World, flag: bool) -> bool:
    """Tell whether any rank says so."""
    return bool(most(world, flag))
