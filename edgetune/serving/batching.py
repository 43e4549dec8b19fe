"""Prompts that come at any time, continued in batches: in their order, as the plan has memory for.

One thread owns the session and runs :meth:`Batcher.run`; others put prompts in and take pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import Literal

from edgetune.backend import GenerateOptions
from edgetune.errors import EdgetuneError, OutOfMemoryError
from edgetune.memory.generation import rows_at_once
from edgetune.workflows.opened import Opened, TextStream, fitting

MOST_WAITING = 256
"""Prompts that wait at one time; more are refused, so that none waits for hours."""

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

    @property
    def drawn_alike(self) -> GenerateOptions:
        """What has to be the same for all prompts of a batch."""
        return replace(self.options, max_tokens=1)


class Batcher:
    """Holds the prompts that wait."""

    def __init__(self) -> None:
        """Hold none."""
        self._waiting: deque[Ask] = deque()
        self._changed = Condition()

    def put(self, ask: Ask) -> None:
        """Let a prompt wait for its turn.

        Raises:
            BusyError: if too many wait.
        """
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise BusyError(f"{MOST_WAITING} prompts wait already. Ask again later.")
            self._waiting.append(ask)
            self._changed.notify()

    def run(self) -> None:
        """Answer for ever, in this thread."""
        while True:
            answer(self._next())

    def _next(self) -> list[Ask]:
        """Wait for prompts and return those that are answered together, the oldest among them."""
        with self._changed:
            while True:
                self._waiting = deque(ask for ask in self._waiting if not ask.cancelled)
                if self._waiting:
                    break
                self._changed.wait()
            batch = _batch(list(self._waiting))
            self._waiting = deque(ask for ask in self._waiting if ask not in batch)
            return batch


def _batch(waiting: Sequence[Ask]) -> list[Ask]:
    """Return the oldest prompt and those behind it that go with it, while the plan has memory."""
    first, *others = waiting
    batch = [first]
    for ask in others:
        if ask.drawn_alike == first.drawn_alike and len(batch) < _room([*batch, ask]):
            batch.append(ask)
    return batch


def _room(batch: Sequence[Ask]) -> int:
    opened = batch[0].opened
    return rows_at_once(
        opened.model.shape,
        opened.plan.choice,
        opened.plan.memory,
        prompt=max(len(ask.prompt) for ask in batch),
        answer=max(ask.options.max_tokens for ask in batch),
    )


def answer(batch: Sequence[Ask]) -> None:
    """Answer prompts together; if they do not fit, fewer at once, in the end one by one."""
    _answer([_Row(ask=ask, text=TextStream(ask.opened.tokenizer)) for ask in batch])


def _answer(rows: Sequence[_Row]) -> None:
    try:
        _continue(rows)
    except OutOfMemoryError as error:
        if len(rows) == 1:
            rows[0].end(error=error)
            return
        half = len(rows) // 2
        for part in (rows[:half], rows[half:]):
            _answer([row.again() for row in part])
    except EdgetuneError as error:
        for row in rows:
            row.end(error=error)


def _continue(rows: Sequence[_Row]) -> None:
    asks = [row.ask for row in rows]
    first, longest = asks[0], max(len(ask.prompt) for ask in asks)
    options = replace(first.options, max_tokens=max(ask.options.max_tokens for ask in asks))
    prompts, adapters = [ask.prompt for ask in asks], [ask.opened.adapter for ask in asks]
    with fitting(first.opened, longest, options):
        for number, token in first.opened.session.generate(prompts, options, adapters=adapters):
            rows[number].add(token)
            if all(row.done for row in rows):
                break
    for row in rows:
        row.end("length")


@dataclass(slots=True, kw_only=True)
class _Row:
    """A prompt that is being answered."""

    ask: Ask
    text: TextStream
    held: str = ""
    """Text that may be the beginning of one that ends the answer."""
    tokens: int = 0
    ended: bool = False
    known: int = field(default=0)
    """Tokens that were sent in an attempt that ran out of memory."""

    @property
    def done(self) -> bool:
        return self.ended or self.ask.cancelled

    def again(self) -> _Row:
        """Return the same for another attempt, which finds the same tokens once more."""
        return replace(self, tokens=0, known=max(self.tokens, self.known))

    def add(self, token: int) -> None:
        if self.done:
            return
        if token in self.ask.options.end_tokens:
            self.end("stop")
            return
        self.tokens += 1
        if self.tokens > self.known:
            self._send(self.text.add(token))
        if self.tokens >= self.ask.options.max_tokens:
            self.end("length")

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
