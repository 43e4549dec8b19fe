"""Several workers of one command on this machine: where they meet, and what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from edgetune.errors import StoppedError
from edgetune.world import MLX_HOSTS, MLX_RANK, Place

SECONDS_TO_END: Final = 600.0
"""How long workers may take to save and end when one of them has died or failed."""

SECONDS_TO_DIE: Final = 10.0
"""How long they may take once more, when they were asked to."""

SECONDS_TO_HEAR: Final = 1.0
"""How long a worker's report may be on its way."""

POLL_SECONDS: Final = 0.05


@contextmanager
def meeting(ranks: int) -> Iterator[list[dict[str, str]]]:
    """Yield what each rank finds in its environment; nothing for a worker that is alone.

    They meet through a file that nobody else can read, or on ports of this machine alone.
    """
    if ranks == 1:
        yield [{}]
        return
    with tempfile.TemporaryDirectory(prefix="edgetune-ranks-") as folder:
        store, hosts = Path(folder) / "store", Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(ranks)]))
        threads = str(max(1, (os.cpu_count() or 1) // ranks))
        places = [
            Place(rank=rank, world=ranks, local_rank=rank, local_world=ranks, store=str(store))
            for rank in range(ranks)
        ]
        yield [
            {
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
                **place.environment(),
                MLX_RANK: str(place.rank),
                MLX_HOSTS: str(hosts),
            }
            for place in places
        ]


def first_dead(processes: Sequence[subprocess.Popen[bytes]], met: Callable[[], bool]) -> int | None:
    """Wait for the end of all processes; return the first that died of a signal, if one did.

    When one has failed, the others notice by themselves; those that do not are ended after a while.
    One that has stopped is no failure: rank 0 may still be saving. Before the ranks have ``met``
    nothing is there to save, and the others would wait for the one that failed: it is returned.
    """
    first, failed, asked = None, 0.0, 0
    while any(process.poll() is None for process in processes):
        time.sleep(POLL_SECONDS)
        codes = [process.poll() for process in processes]
        dead = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
        if first is None and dead:
            first = dead[0]
        wrong = [n for n, code in enumerate(codes) if code not in {None, 0, StoppedError.exit_code}]
        if failed == 0.0 and wrong:
            failed = time.monotonic()
        waited = time.monotonic() - failed if failed else 0.0
        if asked == 0 and waited > SECONDS_TO_HEAR and not met():
            first, asked = wrong[0] if first is None else first, _send(processes, signal.SIGKILL)
        if asked == 0 and waited > SECONDS_TO_END:
            asked = _send(processes, signal.SIGTERM)
        elif asked == signal.SIGTERM and waited > SECONDS_TO_END + SECONDS_TO_DIE:
            asked = _send(processes, signal.SIGKILL)
    return first


def _send(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> int:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
    return int(number)


def _free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
