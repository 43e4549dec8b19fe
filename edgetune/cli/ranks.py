"""The processes of ``edgetune train`` that train together: flags, and what this one is among them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from edgetune.cli.live import Stages
from edgetune.errors import EdgetuneError, LostRankError, StoppedError, UsageError
from edgetune.workflows.ranks import Follower, device_of, join, planned_device
from edgetune.world import ALONE, MOST_RANKS, Place, World

F = TypeVar("F", bound=Callable[..., Any])


def rank_options(function: F) -> F:
    """Add the flags of ranks to a command."""
    timeout = click.option(
        "--rank-timeout",
        type=click.IntRange(1),
        default=1800,
        show_default=True,
        metavar="SECONDS",
        help="How long a process waits for the others before it saves and ends.",
    )
    nproc = click.option(
        "--nproc",
        type=click.IntRange(1, MOST_RANKS),
        default=1,
        metavar="N",
        help="Train with N processes on this machine; for several machines: torchrun, mlx.launch.",
    )
    return nproc(timeout(function))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes that train along with this one; ``place`` is None if there are none."""

    place: Place | None
    device: str
    timeout: float

    @classmethod
    def here(
        cls, device: str, nproc: int, timeout: float, *, pause: bool, resumed: Path | None
    ) -> Ranks:
        """Return which rank of how many this process is, and the device that is its own.

        A run that is ``resumed`` goes on with the kind of device that it was planned for.

        Raises:
            UsageError: if it was to be one of several and nobody started the others, or ``pause``
                would let all wait for one.
        """
        place = Place.here(os.environ)
        if place is None and nproc > 1:
            raise UsageError("--nproc needs the command `edgetune`, which starts the others.")
        if place is not None and pause:
            raise UsageError("--pause would keep all ranks waiting for one. Leave it out.")
        if place is not None and nproc not in {1, place.world}:
            raise UsageError(
                f"--nproc {nproc} is asked for, but the launcher started {place.world} ranks. "
                "Leave out --nproc."
            )
        if place is not None:
            device = device_of(place, planned_device(resumed) if resumed else device)
        return cls(place=place, device=device, timeout=timeout)

    @property
    def follows(self) -> bool:
        """Whether this process trains along with rank 0, which plans, writes and speaks."""
        return self.place is not None and self.place.rank > 0

    def follow(
        self,
        stop: Callable[[], bool],
        *,
        model: str | None,
        data: Path | None,
        memory: int | None,
    ) -> int:
        """Train along, with this rank's own model folder, rows and memory where they are given.

        Returns the exit code. That all have stopped is for rank 0 to say, and that another rank
        is lost for the command that has started them, if it is this program.

        Raises:
            EdgetuneError: naming this rank.
        """
        assert self.place is not None
        follower = Follower(
            place=self.place,
            device=self.device,
            model=model,
            data=data,
            memory=memory,
            timeout=self.timeout,
        )
        try:
            follower.run(stop)
        except EdgetuneError as error:
            if type(error) is StoppedError or (
                isinstance(error, LostRankError) and self.place.store is not None
            ):
                return error.exit_code
            error.args = (f"Rank {self.place.rank}: {error}",)
            raise
        return 0

    def met(self) -> World:
        """Wait for the others, as rank 0."""
        if self.place is None:
            return ALONE
        with Stages() as stages:
            stages.begin(f"Waiting for {self.place.world - 1} more ranks")
            return join(self.place, self.device, self.timeout)
