"""Prompts that come at any time, continued together: in their order, as the plan has memory for.

One thread owns the session and runs :meth:`Batcher.run`; others put prompts in and take pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition
from typing import Final, Literal

from edgetune.backend import GenerateOptions
from edgetune.errors import EdgetuneError, OutOfMemoryError, StoppedError
from edgetune.generation import Row
from edgetune.memory.generation import MOST_ROWS
from edgetune.workflows.opened import Opened, TextStream, fitting

MOST_WAITING = 256
"""Prompts that wait at one time; more are refused, so that none waits for hours."""

_ENDED: Final = "The server has ended. Ask again when it is there again."

Reason = Literal["stop", "length"]


class BusyError(EdgetuneError):
    """Too many prompts wait."""

    kind = "busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some text of an answer; the last has a reason or an error, and the number of its tokens."""

    text: str = ""
    reason: Reason | None = None
    error: EdgetuneError | None = None
    tokens: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Ask:
    """A prompt, and who takes the pieces of its answer; ``stops`` are texts that end it."""

    opened: Opened
    prompt: Sequence[int]
    options: GenerateOptions
    take: Callable[[Piece], None]
    stops: tuple[str, ...] = ()
    cancelled: bool = False
    """Set by who no longer wants the answer."""


class Batcher:
    """Holds the prompts that wait and answers them: the oldest first, together with those before.

    A prompt joins the others at the next token if the plan has memory for it; none overtakes it.
    """

    def __init__(self, opened: Opened) -> None:
        """Hold none yet; all are over the base of ``opened``."""
        self._opened = opened
        self._generation = opened.generation(keeps=True)
        self._waiting: deque[_Answer] = deque()
        self._running: dict[Row, _Answer] = {}
        self._most = MOST_ROWS
        """How many go together since memory ran out for more."""
        self._changed = Condition()
        self._closed = False

    @property
    def read_tokens(self) -> int:
        """Tokens that were read so far; those of a kept cache are not read again."""
        return self._generation.read_tokens

    def put(self, asks: Sequence[Ask]) -> None:
        """Let prompts wait for their turn: all of them, or none.

        Raises:
            BusyError: if too many wait.
            StoppedError: if no more are answered.
        """
        with self._changed:
            if self._closed:
                raise StoppedError(_ENDED)
            waiting = sum(not one.done for one in self._waiting)
            if waiting + len(asks) > MOST_WAITING:
                raise BusyError(
                    f"{waiting} prompts wait already, and {MOST_WAITING} may. Ask again later."
                )
            self._waiting.extend(map(_Answer, asks))
            self._changed.notify()

    def close(self) -> None:
        """Take no more prompts, and tell those whose answers are not complete."""
        with self._changed:
            self._closed = True
            for answer in (*self._running.values(), *self._waiting):
                answer.end(error=StoppedError(_ENDED))

    def run(self) -> None:
        """Answer for ever, in this thread."""
        while True:
            self.join()
            self.step()

    def join(self) -> None:
        """Let prompts join as far as there is memory; wait for one if nothing is answered."""
        with self._changed:
            while True:
                self._waiting = deque(one for one in self._waiting if not one.done)
                if self._waiting or self._running:
                    break
                self._changed.wait()
            if not self._running:
                self._most = MOST_ROWS
            while self._waiting and self._admits(self._waiting[0]):
                answer = self._waiting.popleft()
                self._running[answer.row] = answer
                self._generation.add(answer.row)

    def step(self) -> None:
        """Send each answer its next token."""
        longest, failed = max(self._running, key=lambda row: row.capacity), None
        try:
            with fitting(self._opened, len(longest.prompt), longest.options):
                for row, token in self._generation.step():
                    self._running[row].add(token)
        except OutOfMemoryError as error:
            failed = error
        except EdgetuneError as error:
            for answer in self._running.values():
                answer.end(error=error)
        self._settle()
        if failed is not None and self._running:
            self._make_room(failed)

    def _settle(self) -> None:
        """Let go of answers that are complete, or no longer wanted."""
        for row, answer in list(self._running.items()):
            goes_on = row in self._generation.rows
            if not goes_on:
                answer.end("length")
            elif answer.done:
                self._generation.remove(row)
            if answer.done:
                del self._running[row]

    def _admits(self, answer: _Answer) -> bool:
        few = len(self._running) < self._most
        return not self._running or (few and self._generation.admits(answer.row))

    def _make_room(self, error: OutOfMemoryError) -> None:
        """Free caches that are kept; then let the latest half wait again; the last one has failed."""
        if self._generation.forget():
            return
        rows = list(self._running)
        if len(rows) == 1:
            self._running[rows[0]].end(error=error)
            self._settle()
            return
        self._most = len(rows) // 2
        with self._changed:
            for row in reversed(rows[self._most :]):
                self._generation.suspend(row)
                self._waiting.appendleft(self._running.pop(row))


@dataclass(slots=True, eq=False)
class _Answer:
    """A prompt that waits or is answered."""

    ask: Ask
    row: Row = field(init=False)
    text: TextStream = field(init=False)
    held: str = ""
    """Text that may be the beginning of one that ends the answer."""
    tokens: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        """Begin."""
        self.row = Row(self.ask.prompt, self.ask.options, self.ask.opened.adapter)
        self.text = TextStream(self.ask.opened.tokenizer)

    @property
    def done(self) -> bool:
        """Whether nobody waits for more of it."""
        return self.ended or self.ask.cancelled

    def add(self, token: int) -> None:
        """Send what a token says, or that it ends the answer."""
        if self.done:
            return
        if token in self.ask.options.end_tokens:
            self.end("stop")
            return
        self.tokens += 1
        self._send(self.text.add(token))

    def end(self, reason: Reason | None = None, error: EdgetuneError | None = None) -> None:
        """Send what is left and why it ends, once."""
        if self.done:
            return
        self._send(self.text.rest())
        if not self.ended:
            self.ended = True
            last = Piece(text=self.held, reason=reason, error=error, tokens=self.tokens)
            self.ask.take(last)

    def _send(self, text: str) -> None:
        """Send a text as far as it cannot be part of one that ends the answer."""
        text = self.held + text
        ends = [at for stop in self.ask.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.ended = True
            self.ask.take(Piece(text=text[: min(ends)], reason="stop", tokens=self.tokens))
            return
        keep = max((_overlap(text, stop) for stop in self.ask.stops), default=0)
        sent, self.held = text[: len(text) - keep], text[len(text) - keep :]
        if sent:
            self.ask.take(Piece(text=sent))


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of another.

    >>> _overlap("so it goes\\nUs", "\\nUser:")
    3
    """
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
