"""Prompts continued together, a token of each after the other; others may join at any token.

A backend reads tokens and returns logits (:meth:`edgetune.backend.Session.read`). What is here is
the same for all of them: who is read together, which token comes next, which caches are used again.

A row has tokens, those of its prompt and those found, of which its cache has read the first ones.
A step reads the others: all of a prompt at the beginning, what is new of it behind the cache of an
earlier answer, one token mostly, and everything once more if the cache was dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import DEFAULT_ADAPTER, Cache, GenerateOptions, Session
from edgetune.memory.generation import Room
from edgetune.sampling import choose


@dataclass(slots=True, eq=False)
class Row:
    """A prompt that is continued by an adapter; None: by the base alone."""

    prompt: Sequence[int]
    options: GenerateOptions
    adapter: str | None = DEFAULT_ADAPTER
    tokens: list[int] = field(init=False)
    """Those of the prompt and those found."""
    draws: np.random.Generator = field(init=False)
    cache: Cache | None = field(default=None, init=False)
    cached: int = field(default=0, init=False)
    """How many tokens the cache has read."""

    def __post_init__(self) -> None:
        """Begin with the prompt."""
        self.tokens = list(self.prompt)
        self.draws = np.random.default_rng(self.options.seed)

    @property
    def capacity(self) -> int:
        """Tokens of the prompt and of the longest answer."""
        return len(self.prompt) + self.options.max_tokens

    @property
    def unread(self) -> int:
        """Tokens that the next step reads."""
        return len(self.tokens) - self.cached

    @property
    def kind(self) -> str:
        """How it is read: rows of one kind go together."""
        if self.cached == 0:
            return "first"
        return "next" if self.unread == 1 else "several"

    def drop_cache(self) -> None:
        """Free what was read; the next step reads everything."""
        self.cache, self.cached = None, 0


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The cache of an answer that has ended."""

    adapter: str | None
    tokens: Sequence[int]
    """Those that the cache has read."""
    capacity: int
    cache: Cache

    def common(self, row: Row) -> int:
        """Return how many first tokens of a row it has read, but for the row's last one."""
        if self.adapter != row.adapter:
            return 0
        pairs = zip(self.tokens, row.tokens[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class Generation:
    """The rows that are continued in one session.

    A ``room`` keeps them within a plan's memory. If it also ``keeps`` caches, those of rows that
    have ended stay as long as there is room: a row that begins as one of them did, as each
    question of a chat does, goes on from there.
    """

    def __init__(self, session: Session, room: Room | None = None, *, keeps: bool = False) -> None:
        """Begin without rows."""
        self.rows: list[Row] = []
        self.read_tokens = 0
        """Tokens that were read so far: what is taken from a cache is not."""
        self._session, self._room, self._keeps = session, room, keeps
        self._kept: list[Kept] = []
        self._carries = any(kind.carried for kind in session.shape.kinds)

    def admits(self, row: Row) -> bool:
        """Return whether a row may join now: one alone always may."""
        if not self.rows or self._room is None:
            return True
        rows = [*self.rows, row]
        starting = [one.unread for one in rows if one.cached == 0]
        together = self._room.prompts_at_once(max(starting))
        return self._room.holds([one.capacity for one in rows]) and len(starting) <= together

    def add(self, row: Row) -> None:
        """Let a row join at the next step."""
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        """Let go of a row, wherever its answer is."""
        self.rows.remove(row)
        if self._keeps and row.cache is not None and row.cached:
            tokens = tuple(row.tokens[: row.cached])
            self._kept.append(Kept(row.adapter, tokens, row.capacity, row.cache))
            self._make_room()

    def suspend(self, row: Row) -> None:
        """Take a row out and free its cache. Added again, it goes on as it would have."""
        self.rows.remove(row)
        row.drop_cache()

    def forget(self) -> bool:
        """Free the caches that were kept; return whether there were any."""
        found = bool(self._kept)
        self._kept.clear()
        return found

    def step(self) -> Iterator[tuple[Row, int]]:
        """Yield each row and its next token. Rows that end are let go of; others may be, and join.

        Raises:
            DeviceOutOfMemoryError: if it does not fit; no token is lost then.
        """
        for row in self.rows:
            self._prepare(row)
        for group in self._groups():
            left = [row for row in group if row in self.rows and row.cache is not None]
            for row, logits in zip(left, self._read(left), strict=True):
                token = choose(logits, row.options, row.draws)
                row.tokens.append(token)
                yield row, token
                if row in self.rows and self._ends(row):
                    self.remove(row)

    def _prepare(self, row: Row) -> None:
        """Give a row a cache; empty it if longer rows are rotated otherwise (LongRoPE)."""
        if row.cache is None:
            self._give_cache(row)
        assert row.cache is not None
        if row.cached and not self._rotated_alike(row.cache, row.cached, len(row.tokens)):
            row.cache.cut(0)
            row.cached = 0

    def _give_cache(self, row: Row) -> None:
        found = max(self._kept, key=lambda kept: kept.common(row), default=None)
        if found is None or not self._usable(found, row):
            self._make_room()
            row.cache = self._session.new_cache(row.adapter, row.capacity)
            return
        self._kept.remove(found)
        self._make_room()
        common = found.common(row)
        found.cache.cut(common)
        found.cache.resize(row.capacity)
        row.cache, row.cached = found.cache, common

    def _usable(self, kept: Kept, row: Row) -> bool:
        """Return whether a cache serves a row, most of it: the rest of it is lost."""
        common, read = kept.common(row), len(kept.tokens)
        enough = common == read if self._carries else 2 * common >= read
        return enough and common > 0 and self._rotated_alike(kept.cache, read, len(row.tokens))

    def _rotated_alike(self, cache: Cache, read: int, length: int) -> bool:
        reached = self._session.shape.reached
        return reached(cache.before + read) == reached(cache.before + length)

    def _make_room(self) -> None:
        """Free kept caches, the oldest first, until the others fit beside the rows."""
        rows = [row.capacity for row in self.rows]
        while self._kept and not (
            self._room and self._room.holds(rows, [kept.capacity for kept in self._kept])
        ):
            self._kept.pop(0)

    def _groups(self) -> Iterator[list[Row]]:
        """Yield the rows that are read together, those of one adapter beside each other."""
        adapters = list(dict.fromkeys(row.adapter for row in self.rows))
        groups: dict[tuple[str, int], list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: adapters.index(row.adapter)):
            assert row.cache is not None
            rotation = self._session.shape.reached(row.cache.before + len(row.tokens))
            groups.setdefault((row.kind, rotation), []).append(row)
        for (kind, _), rows in list(groups.items()):
            most = len(rows)
            if kind != "next" and self._room is not None:
                most = self._room.prompts_at_once(max(row.unread for row in rows))
            yield from (rows[start : start + most] for start in range(0, len(rows), most))

    def _read(self, rows: Sequence[Row]) -> Sequence[NDArray[np.float32]]:
        """Return the logits (V,) after each row's last token."""
        asked = [(row.cache, row.tokens[row.cached :]) for row in rows if row.cache is not None]
        if not asked:
            return []
        try:
            logits = self._session.read(asked)
        except BaseException:
            for row in rows:
                row.drop_cache()
            raise
        for row, (_, tokens) in zip(rows, asked, strict=True):
            row.cached += len(tokens)
            self.read_tokens += len(tokens)
        return list(logits)

    def _ends(self, row: Row) -> bool:
        """Return whether the last token ends the answer, or stands at the model's last position."""
        last, options = self._session.shape.last_length, row.options
        assert row.cache is not None
        full = last is not None and row.cache.before + len(row.tokens) > last
        return full or row.tokens[-1] in options.end_tokens or len(row.tokens) == row.capacity


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    options: GenerateOptions,
    *,
    adapters: Sequence[str | None] | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield the number of a prompt and its next token, the one that ends it included.

    All are continued at once, whatever memory that takes. ``adapters`` names one for each prompt
    (None: the base alone); without it all have the session's own.
    """
    names = adapters or (DEFAULT_ADAPTER,) * len(prompts)
    generation, numbers = Generation(session), {}
    for number, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
        row = Row(prompt, options, name)
        numbers[row] = number
        generation.add(row)
    while generation.rows:
        for row, token in generation.step():
            yield numbers[row], token
