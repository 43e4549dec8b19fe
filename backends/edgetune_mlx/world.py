"""The ranks of a world over mx.distributed, on its ring.

The ring waits without end, so that what waits is a thread: when its time is over, the rank gives up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import LostRankError, UsageError
from edgetune.world import MLX_HOSTS, Place, interruptible

T = TypeVar("T")

RETRY_SECONDS: Final = 0.5


class MlxWorld:
    """The world that this process has joined."""

    def __init__(self, place: Place, timeout: float) -> None:
        """Wait until all ranks are there; from then on each waits ``timeout`` seconds for another.

        Raises:
            UsageError: if the ranks were not started for MLX.
            LostRankError: if some do not come.
        """
        if MLX_HOSTS not in os.environ:
            raise UsageError(
                "MLX's ranks meet through mlx.launch, or through --nproc on one machine. Ranks on "
                "torch and on MLX cannot train together: give each the same kind of --device."
            )
        self.rank, self.size, self.waited = place.rank, place.world, 0.0
        self._timeout = timeout
        self._group = self._waited(partial(_ring, time.monotonic() + timeout))
        if self._group.size() != place.world:
            raise UsageError(
                f"{place.world} ranks were started, and {os.environ[MLX_HOSTS]} has addresses for "
                f"{self._group.size()}."
            )

    def gather(self, numbers: Sequence[float]) -> list[tuple[float, ...]]:
        """Return the numbers of every rank; see :class:`edgetune.world.World`."""
        own = np.array(numbers, np.float64).view(np.uint8)
        found = self._waited(
            lambda: np.array(mx.distributed.all_gather(mx.array(own), group=self._group))
        )
        rows = found.view(np.float64).reshape(self.size, len(numbers))
        return [tuple(row) for row in rows.tolist()]

    def add(self, numbers: NDArray[np.float32]) -> None:
        """Replace an array by the sum over all ranks; see :class:`edgetune.world.World`.

        Of more than two ranks the ring decides in which order floats are added: it knows neighbours
        alone, and giving all parts to all of them would be several times the bytes.
        """
        numbers[:] = self._waited(
            lambda: np.array(mx.distributed.all_sum(mx.array(numbers), group=self._group))
        )

    def spread(self, data: bytes) -> bytes:
        """Return what rank 0 gave; see :class:`edgetune.world.World`."""
        (size,) = self.gather((len(data),))[0]
        held = np.zeros(int(size), np.uint8)
        if self.rank == 0:
            held[:] = np.frombuffer(data, np.uint8)
        if not len(held):
            return b""
        # the others give zeros, which change nothing: a ring has no broadcast
        given = self._waited(
            lambda: np.array(mx.distributed.all_sum(mx.array(held), group=self._group))
        )
        return given.tobytes()

    def close(self) -> None:
        """Leave: the ring is closed with the process."""

    def _waited(self, work: Callable[[], T]) -> T:
        """Return what is computed in a thread of its own, if that is in time."""
        begun = time.perf_counter()
        try:
            found = interruptible(work, self._timeout)
            self.waited += time.perf_counter() - begun
            return found
        except RuntimeError as error:
            raise LostRankError(f"Another rank ended or hangs ({error}).") from None
        except TimeoutError:
            seconds = f"{self._timeout:.0f} s"
            raise LostRankError(f"Another rank did not answer within {seconds}.") from None


def _ring(deadline: float) -> mx.distributed.Group:
    """Return the ring, tried again until a deadline: MLX itself gives up after some seconds.

    It takes the first that calls for its neighbour, whoever that is.
    """
    while True:
        try:
            return mx.distributed.init(strict=True, backend="ring")
        except RuntimeError as error:
            if time.monotonic() > deadline:
                raise LostRankError(
                    f"The ranks did not come together in time ({error}): one did not start, an "
                    f"address in {os.environ[MLX_HOSTS]} is another machine's, or a program that "
                    "is no rank called its port first. Start all of them again."
                ) from None
            time.sleep(RETRY_SECONDS)
