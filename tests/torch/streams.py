"""A card's streams without a card: what happens before what, and accesses that nothing orders.

Streams and threads are actors with a vector clock each: for every actor, how far into its work the
owner of the clock has certainly seen. Work on a stream comes after what was queued on it before, after
the events that it was told to wait for, and after the moment at which a thread queued it. Two accesses
to one memory of which one writes are a race unless one comes before the other.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock, current_thread, local
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Clock = dict[int, int]


def joined(clock: Clock, other: Clock) -> None:
    """Let a clock know what another one knows."""
    for actor, time in other.items():
        clock[actor] = max(clock.get(actor, 0), time)


@dataclass(eq=False)
class Actor:
    """A stream or a thread."""

    name: str
    clock: Clock = field(default_factory=dict)

    def tick(self) -> int:
        """Go on by one piece of work; return its number."""
        number = self.clock[id(self)] = self.clock.get(id(self), 0) + 1
        return number


@dataclass
class Memory:
    """The last accesses to one memory, by who made them."""

    reads: dict[int, tuple[int, str]] = field(default_factory=dict)
    writes: dict[int, tuple[int, str]] = field(default_factory=dict)


class Machine:
    """A card, the threads of its host, and the races that were seen."""

    def __init__(self) -> None:
        self.races: list[str] = []
        self.compute = Stream(self, "compute")
        self._threads: dict[int, Actor] = {}
        self._memory: dict[int, Memory] = defaultdict(Memory)
        self._on_card: dict[int, bool] = {}
        self._here = local()
        self.lock = RLock()

    @property
    def thread(self) -> Actor:
        """The thread that asks."""
        own = current_thread()
        return self._threads.setdefault(id(own), Actor(own.name))

    @property
    def stream(self) -> Stream:
        """The stream that this thread queues work on."""
        return getattr(self._here, "stream", self.compute)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Queue work of this thread on a stream."""
        before, self._here.stream = self.stream, stream
        try:
            yield
        finally:
            self._here.stream = before

    def place(self, tensor: Tensor, *, card: bool) -> Tensor:
        """Say where a tensor's memory is; who gets it next follows on who had it."""
        place = _memory(tensor)
        self._on_card[place] = card
        weakref.finalize(tensor.untyped_storage(), self._on_card.pop, place, None)
        return tensor

    def accessed(self, name: str, read: list[Tensor], written: list[Tensor]) -> None:
        """Note a piece of work: a card's if it touches its memory, else this thread's."""
        with self.lock:
            known = [x for x in (*read, *written) if _memory(x) in self._on_card]
            if not known:
                return
            if any(self._on_card[_memory(x)] for x in known):
                actor: Actor = self.stream
                joined(actor.clock, self.thread.clock)
            else:
                actor = self.thread
            number, label = actor.tick(), f"{name} on {actor.name}"
            for x in known:
                own, writes = self._memory[_memory(x)], any(x is each for each in written)
                before = {**own.writes}
                self._judge(actor, label, before)
                if writes:
                    self._judge(actor, label, own.reads)
                (own.writes if writes else own.reads)[id(actor)] = number, label

    def _judge(self, actor: Actor, label: str, before: dict[int, tuple[int, str]]) -> None:
        for other, (number, what) in before.items():
            if actor.clock.get(other, 0) < number:
                self.races.append(f"{label} does not wait for {what}")


class Stream(Actor):
    """What :class:`torch.cuda.Stream` promises."""

    def __init__(self, machine: Machine, name: str) -> None:
        super().__init__(name)
        self.machine = machine

    def wait_event(self, event: Event) -> None:
        """Do nothing that is queued from now on before what the event has recorded."""
        with self.machine.lock:
            joined(self.clock, self.machine.thread.clock)
            joined(self.clock, event.clock)

    def wait_stream(self, other: Stream) -> None:
        """Do nothing before what is queued on another stream."""
        with self.machine.lock:
            joined(self.clock, other.clock)

    def synchronize(self) -> None:
        """Let the thread wait for all that is queued."""
        with self.machine.lock:
            joined(self.machine.thread.clock, self.clock)


class Event:
    """What :class:`torch.cuda.Event` promises."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.clock: Clock = {}

    def record(self, stream: Stream) -> None:
        """Stand for all that is queued on a stream."""
        with self.machine.lock:
            joined(stream.clock, self.machine.thread.clock)
            self.clock = dict(stream.clock)

    def synchronize(self) -> None:
        """Let the thread wait for it."""
        with self.machine.lock:
            joined(self.machine.thread.clock, self.clock)


class Watch(TorchDispatchMode):
    """Tells a machine what operations read and write."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if not func.is_view:
            writes = func._schema.name.endswith("_")
            written, read = (tensors[:1], tensors[1:]) if writes else ([], tensors)
            self.machine.accessed(func.overloadpacket.__name__, read, written)
        return func(*args, **(kwargs or {}))


class Reader:
    """A pool of one thread whose beginning and end are ordered with who asks."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._pool = ThreadPoolExecutor(1)

    def submit(self, work: Callable[..., Any], *given: Any) -> Asked:
        """Do something in the thread."""
        machine, before = self.machine, dict(self.machine.thread.clock)

        def run() -> Clock:
            with machine.lock:
                joined(machine.thread.clock, before)
            with Watch(machine):
                work(*given)
            return dict(machine.thread.clock)

        return Asked(machine, self._pool.submit(run))

    def shutdown(self) -> None:
        """End the thread."""
        self._pool.shutdown()


@dataclass
class Asked:
    """What a reader was asked for."""

    machine: Machine
    future: Future[Clock]

    def result(self) -> None:
        """Wait until it is done."""
        clock = self.future.result()
        with self.machine.lock:
            joined(self.machine.thread.clock, clock)


@contextmanager
def machine(patch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Put a machine in the place of :mod:`torch.cuda`; everything computed meanwhile is watched."""
    found, empty, names = Machine(), torch.empty, iter(range(1_000_000))

    def placed(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        return found.place(empty(*size, **options), card=not pin_memory)

    patch.setattr(torch, "empty", placed)
    patch.setattr(torch.cuda, "Stream", lambda *_: Stream(found, f"copies {next(names)}"))
    patch.setattr(torch.cuda, "Event", lambda: Event(found))
    patch.setattr(torch.cuda, "current_stream", lambda *_: found.stream)
    patch.setattr(torch.cuda, "stream", found.on)
    with Watch(found):
        yield found


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
