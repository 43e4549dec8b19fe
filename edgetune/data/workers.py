"""Encoding blocks in several processes, in the order of the file.

Processes and not the tokenizer's own threads: those share one Python that parses, renders and
masks, and leave cores idle meanwhile (`tools/bench/data.py` measures both).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait

from edgetune.data.chunks import Chunk
from edgetune.data.rows import BlockEncoder, Outcome
from edgetune.errors import OutOfMemoryError

MOST = 8
"""More processes than this wait for the one that reads."""

_WAITING = 3  # blocks a process that are under way: none is ever idle, and memory stays bounded
_TERMINAL = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))
"""What a terminal sends to all processes of a command: Ctrl-C, and that it is closed."""
_encoder: BlockEncoder | None = None


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_in_processes(
    make: Callable[[], BlockEncoder],
    blocks: Iterable[Chunk],
    processes: int,
    only_check: Callable[[], bool],
) -> Iterator[Outcome]:
    """Yield the outcome of each block in order; ``make`` must be picklable.

    Raises:
        OutOfMemoryError: if a process was killed from outside.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start, (make,))
    waiting: deque[Future[Outcome]] = deque()
    try:
        with _no_interrupts():
            ready = [pool.submit(_is_ready) for _ in range(processes)]
        for block in blocks:
            waiting.append(pool.submit(_encode, block, only_check()))
            if len(waiting) > processes * _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        del ready
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "A process that tokenizes was killed, most likely for want of memory. Close other"
            " programs, or split the file; nothing was trained yet, so run the command again."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(make: Callable[[], BlockEncoder]) -> None:
    """Prepare a process; what a terminal sends is for the main one, which ends the others."""
    global _encoder  # noqa: PLW0603
    for number in _TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = make()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it ended.

    Its end of a pipe closes then, on every system. Nothing else would wake a process that waits
    for work which never comes.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "processes are started by this module"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_ready() -> bool:
    return _encoder is not None


def _encode(block: Chunk, only_check: bool) -> Outcome:
    assert _encoder is not None
    return _encoder.encode(block, only_check=only_check)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Keep a terminal's signals from processes while they start, before they can say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, signal.SIG_IGN) for number in _TERMINAL]
    try:
        yield
    finally:
        for number, handler in zip(_TERMINAL, before, strict=True):
            signal.signal(number, handler)
