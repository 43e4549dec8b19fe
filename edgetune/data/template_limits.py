"""Limits for someone else's program: a chat template may run for long, or want all memory.

Jinja's sandbox keeps a template from the machine, not from running forever. A thread looks after
the one that renders and interrupts it, in whichever thread or process that is. It cannot interrupt
one single operation; those that can be huge are refused by their form, or fail for want of memory.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from edgetune.errors import ModelError

T = TypeVar("T")

SECONDS: Final = 5.0
"""A thousand times what a long chat takes."""
MEMORY: Final = 128 << 20
"""Bytes that rendering one chat may add."""
LONGEST: Final = 1 << 20
"""Characters of a template; the longest there are have thirty thousand."""
_LOOK_SECONDS: Final = 0.01
_GROWING_SECONDS: Final = 0.002
"""Between looks at what has taken some memory: a text that is doubled soon has it all."""
_IDLE_SECONDS: Final = 2.0
_AGAIN: Final = 100
"""Looks until who did not hear an interruption is told again."""
_LARGEST_FACTOR: Final = 1000
_WIDENING: Final = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "indent"}
)


class _Interrupted(BaseException):
    """The watcher's word to the thread that renders; nothing may catch it on its way."""


def limited(call: Callable[[], T], *, memory: bool) -> T:
    """Return what ``call`` returns, or interrupt it when it takes too long or too much.

    With ``memory`` a single huge allocation fails, too, where the system can see to it (Linux).

    Raises:
        ModelError: if it was interrupted.
        MemoryError: if such an allocation failed.
    """
    _WATCHER.wake()  # before memory is limited: a thread needs some
    with _less_memory() if memory else nullcontext():
        return _watched(call)


def _watched(call: Callable[[], T]) -> T:
    # An interruption can come between any two instructions: all of them are in this one frame.
    job = _Job(threading.get_ident(), time.monotonic(), _WATCHER.memory)
    try:
        _WATCHER.begin(job)
        try:
            return call()
        finally:
            _WATCHER.end(job)
    except _Interrupted:
        job.heard = True
        while not job.ended:
            with suppress(_Interrupted):  # one that came while the first was on its way here
                _WATCHER.end(job)
        raise ModelError(
            f"The model's chat template {job.because}: it may never end. Mend chat_template.jinja "
            "(or chat_template in tokenizer_config.json) in the model's folder."
        ) from None


@lru_cache(maxsize=8)
def is_risky(source: str) -> bool:
    """Return whether a template can make something huge in one operation.

    Raises:
        ModelError: if it computes powers, or multiplies by what it reads.
    """
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja's

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    if len(source) > LONGEST:
        raise ModelError(
            f"The model's chat template has {len(source):,} characters; at most {LONGEST:,} are "
            "read. Copy the model's files again."
        )
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(source)
    except (jinja2.TemplateError, RecursionError):
        return False  # whoever renders it says what is wrong
    products = list(tree.find_all(nodes.Mul))
    if any(tree.find_all(nodes.Pow)) or not all(map(_is_small, products)):
        raise ModelError(
            "The model's chat template computes powers or multiplies by large numbers, which no "
            "chat needs and which can take all memory. It is not run."
        )
    wide = (*tree.find_all(nodes.Filter), *tree.find_all(nodes.Getattr))
    names = {getattr(node, "name", None) or getattr(node, "attr", None) for node in wide}
    return bool(products or any(tree.find_all(nodes.Mod)) or names & _WIDENING)


def _is_small(product: Any) -> bool:
    """Tell whether one side of a product is a short text or a small number."""
    from jinja2 import nodes

    values = [side.value for side in (product.left, product.right) if isinstance(side, nodes.Const)]
    sizes = [len(value) if isinstance(value, str) else abs(value) for value in values]
    return bool(sizes) and max(sizes) <= _LARGEST_FACTOR


@dataclass(slots=True)
class _Job:
    thread: int
    began: float
    memory: int
    """Bytes of the process at the last look before it."""
    grown: int = 0
    """Bytes that it has more at the latest one."""
    because: str | None = None
    """Why it was interrupted."""
    looks: int = 0
    """Taken since then."""
    told: bool = False
    heard: bool = False
    ended: bool = False


class _Watcher:
    """Looks at what is rendered every so often, and leaves when nothing was for a while."""

    def __init__(self) -> None:
        self._jobs: dict[int, _Job] = {}
        self._thread: threading.Thread | None = None
        self.memory = 0
        """Bytes of the process at the latest look."""

    def wake(self) -> None:
        """Start the thread that watches, if it left."""
        if self._thread is None:
            self.memory = _memory() or self.memory
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def begin(self, job: _Job) -> None:
        """Watch a job of this thread."""
        self._jobs[job.thread] = job
        self.wake()

    def end(self, job: _Job) -> None:
        """Watch it no more: no interruption is under way when this returns."""
        self._jobs.pop(job.thread, None)  # first this, then the question, as _interrupt has it
        if job.because is not None:
            while not job.told:
                time.sleep(0.001)
            _raise_in(job.thread, None)
        job.ended = True

    def _watch(self) -> None:
        idle = 0.0
        while self._jobs or idle < _IDLE_SECONDS:
            growing = any(job.grown > MEMORY >> 4 for job in list(self._jobs.values()))
            time.sleep(min(_LOOK_SECONDS, _GROWING_SECONDS) if growing else _LOOK_SECONDS)
            idle = 0.0 if self._jobs else idle + _LOOK_SECONDS
            # who has it all is about to be told so: then nothing can be read
            self.memory = _memory() or self.memory
            for job in list(self._jobs.values()):
                job.looks += job.because is not None
                if job.because is None and (because := _excess(job, self.memory)):
                    self._interrupt(job, because)
                elif job.looks % _AGAIN == _AGAIN - 1 and not job.heard:
                    self._interrupt(job, job.because)  # lost: a weak reference's callback eats it
        self._thread = None
        if self._jobs:  # one came just now
            self.wake()

    def _interrupt(self, job: _Job, because: str | None) -> None:
        job.told, job.because = False, because
        if self._jobs.get(job.thread) is job:
            _raise_in(job.thread, _Interrupted)
        job.told = True


def _excess(job: _Job, memory: int) -> str | None:
    if time.monotonic() - job.began > SECONDS:
        return f"ran for {SECONDS:g} seconds on one chat"
    job.grown = memory - job.memory
    return f"took {MEMORY >> 20} MB for one chat" if job.grown > MEMORY else None


def _memory() -> int | None:
    """Return the bytes of this process; None where not even these can be had."""
    import psutil

    try:
        return int(psutil.Process().memory_info().rss)
    except MemoryError:
        return None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error in a thread as soon as it is at a Python instruction; None takes one back."""
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


@contextmanager
def _less_memory() -> Iterator[None]:
    """Let allocations fail that go far beyond what this process has now."""
    if sys.platform != "linux" or not _ONE_LIMIT.acquire(blocking=False):
        yield  # the limit is the whole process's: where a second thread renders, the first has set it
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY
    if before[0] == resource.RLIM_INFINITY or before[0] > most:
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        _ONE_LIMIT.release()


_WATCHER: Final = _Watcher()
_ONE_LIMIT: Final = threading.Lock()
