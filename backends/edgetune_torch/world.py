"""The ranks of a world over torch.distributed: only sums of a few megabytes travel.

They go over gloo, from the memory of the host. Where every rank has a card of its own, gradients go over nccl
instead, from card to card; what ranks ask each other goes over gloo all the same.

Nothing that is received is unpickled: numbers and bytes go as tensors.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from math import ceil
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from edgetune.errors import LostRankError, UsageError
from edgetune.shares import by_halves
from edgetune.world import MLX_HOSTS, Place, interruptible

SECONDS_TO_ANSWER: Final = 3
"""How long a rank that is there may take to say so, when something was lost."""

PIECE: Final = 1 << 19
"""Numbers of a sum that are exchanged at a time: what that takes does not grow with the adapter."""

LEAST_MESSAGE: Final = 1 << 14
"""Numbers of a piece for each rank, of many: smaller messages cost more to send than to carry."""

GLOO: Final = "gloo"
MASTER: Final = "MASTER_ADDR"

LOOPBACK: Final = "lo0" if sys.platform == "darwin" else "lo"


def backend_for(cards: Sequence[str], *, nccl: bool) -> str:
    """Return what ranks speak over; ``cards`` are the identities of theirs, empty for a processor.

    nccl needs a card of its own for each, and knows no processors: mixed worlds speak over gloo.
    """
    own = all(cards) and len(set(cards)) == len(cards)
    return f"cpu:{GLOO},cuda:nccl" if nccl and own else GLOO


class TorchWorld:
    """The world that this process has joined."""

    def __init__(self, place: Place, timeout: float, card: str | None = None) -> None:
        """Wait until all ranks are there; from then on each waits ``timeout`` seconds for another.

        ``card`` is the driver's identity of the card that this rank computes on, None if on none.

        Raises:
            UsageError: if torch.distributed is not there, or the ranks were started for MLX.
            LostRankError: if some do not come.
        """
        if not dist.is_available():
            raise UsageError("This torch was built without torch.distributed: no ranks.")
        if place.store is None and MASTER not in os.environ and MLX_HOSTS in os.environ:
            raise UsageError(
                "These ranks were started by mlx.launch, and this one would compute with torch. Ranks "
                "on torch and on MLX cannot train together: give each the same kind of --device, and "
                "start those on torch with torchrun."
            )
        self.rank, self.size, self.waited = place.rank, place.world, 0.0
        self._waits = timedelta(seconds=timeout)
        if place.store is not None:  # one machine: nothing is open to others
            os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
        try:
            self._store, self._over = interruptible(lambda: self._met(place, card or ""))
        except (RuntimeError, ValueError) as error:
            raise LostRankError(
                f"Rank {place.rank} of {place.world} could not meet the others within "
                f"{timeout:.0f} s: {_first_line(error)}"
            ) from None

    def _met(self, place: Place, card: str) -> tuple[Any, str]:
        """Join the others; return the store through which all know of each other, and the backend."""
        method = "env://" if place.store is None else f"file://{place.store}"
        store, _, _ = next(rendezvous(method, place.rank, place.world, timeout=self._waits))
        store.set_timeout(self._waits)
        store.set(f"card-{place.rank}", card)
        cards = [store.get(f"card-{rank}").decode() for rank in range(place.world)]
        over = backend_for(cards, nccl=dist.is_nccl_available())
        if over != GLOO:  # without it, nccl would end the process where another rank is lost
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        dist.init_process_group(
            over, store=store, rank=place.rank, world_size=place.world, timeout=self._waits
        )
        return store, over

    def gather(self, numbers: Sequence[float]) -> list[tuple[float, ...]]:
        """Return the numbers of every rank; see :class:`edgetune.world.World`."""
        own = torch.tensor(numbers, dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        self.answered(lambda: dist.all_gather(found, own))
        return [tuple(each.tolist()) for each in found]

    def add(self, numbers: NDArray[np.float32]) -> None:
        """Replace an array by the sum over all ranks; see :class:`edgetune.world.World`."""
        self.answered(lambda: self._add(torch.from_numpy(numbers)))

    def add_tensor(self, flat: Tensor) -> None:
        """Replace a tensor (N,) by the sum over all ranks, from the host's memory or the card's.

        Whoever calls this in a thread asks :meth:`answered` what became of it.
        """
        if not flat.is_cuda:
            self._add(flat)
        elif self._over == GLOO:
            host = flat.cpu()
            self._add(host)
            flat.copy_(host)
        else:
            with torch.cuda.device(flat.device):  # a thread begins with the first card
                self._add(flat)

    def _add(self, flat: Tensor) -> None:
        """Replace a tensor (N,) by the sum over all ranks.

        Each rank adds one part of it up and hands the sum on: as many bytes as those of a sum over a
        ring, and the order in which floats are added does not depend on where they stand.
        """
        for piece in torch.split(flat, max(PIECE, self.size * LEAST_MESSAGE)):
            share = ceil(len(piece) / self.size)
            given = torch.zeros(share * self.size, dtype=flat.dtype, device=flat.device)
            given[: len(piece)] = piece
            found = torch.empty_like(given)
            dist.all_to_all_single(found, given)
            own = by_halves(torch.split(found, share), torch.add)
            dist.all_gather(list(torch.split(given, share)), own)
            piece.copy_(given[: len(piece)])

    def spread(self, data: bytes) -> bytes:
        """Return what rank 0 gave; see :class:`edgetune.world.World`."""
        (size,) = self.gather((len(data),))[0]
        held = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == 0:
            held = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else held
        if len(held):
            self.answered(lambda: dist.broadcast(held, 0))
        return held.numpy().tobytes()

    def close(self) -> None:
        """Leave."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def answered(self, exchange: Callable[[], object]) -> None:
        """Exchange something, and name the ranks that are lost where that fails."""
        begun = time.perf_counter()
        try:
            interruptible(exchange)
            self.waited += time.perf_counter() - begun
        except RuntimeError as error:
            lost = " and ".join(f"rank {rank}" for rank in self._lost())
            who = lost.capitalize() if lost else f"Another rank ({_first_line(error)})"
            seconds = self._waits.total_seconds()
            raise LostRankError(f"{who} ended or did not answer within {seconds:.0f} s.") from None

    def _lost(self) -> list[int]:
        """Return who does not answer any more: every rank that is there says so in the store."""
        try:
            self._store.set(f"alive-{self.rank}", "1")
        except RuntimeError:  # it is rank 0's
            return [0]
        return [rank for rank in range(self.size) if not self._answers(rank)]

    def _answers(self, rank: int) -> bool:
        try:
            self._store.wait([f"alive-{rank}"], timedelta(seconds=SECONDS_TO_ANSWER))
        except RuntimeError:
            return False
        return True


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
