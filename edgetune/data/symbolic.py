"""Stand-ins for what is said in a chat, which note what a template does with it.

A template is a program: what it writes for one chat says nothing about the next, unless it is
known that it treats both alike. So it is run on :class:`Said` objects. They can be joined,
trimmed and split, which is noted, and asked yes-no questions, of which question and answer are
noted; whatever else is tried with one ends the attempt. Chats of one structure that answer all
the questions alike are written alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

Arguments = tuple[str, ...]


class UntraceableError(Exception):
    """The template does something with a message that cannot be followed."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What one message says, after some string methods: (name, arguments, part taken)."""

    message: int
    steps: tuple[tuple[str, Arguments, int | None], ...] = ()

    def value(self, contents: Sequence[str]) -> str:
        """Return the text that stands here in a chat of these contents."""
        text = contents[self.message]
        for name, arguments, part in self.steps:
            result = getattr(text, name)(*arguments)
            text = result if part is None else result[part]
        return text

    def then(self, name: str, arguments: Arguments, part: int | None = None) -> Slot:
        """Return the slot after one more method."""
        return Slot(self.message, (*self.steps, (name, arguments, part)))

    @property
    def is_whole(self) -> bool:
        """Whether nothing but space around the text can be missing."""
        return all("strip" in name and not "".join(arguments).strip()
                   for name, arguments, _ in self.steps)  # fmt: skip


Question = tuple[Slot, str, Arguments]
Part = str | Slot


@dataclass(slots=True)
class Trace:
    """One chat being followed: its contents, the questions that were asked about them, and a
    number for each slot that was written.
    """

    contents: Sequence[str]
    answers: dict[Question, bool] = field(default_factory=dict)
    slots: dict[Slot, int] = field(default_factory=dict)

    def said(self, message: int) -> Said:
        """Return the stand-in for what a message says."""
        return Said(self, (Slot(message),))

    def ask(self, slot: Slot, name: str, arguments: Arguments) -> bool:
        """Return and note the answer to a question about a text."""
        question = slot, name, arguments
        self.answers[question] = answer(question, self.contents)
        return self.answers[question]

    def mark(self, slot: Slot) -> str:
        """Return the text that stands for a slot.

        The mark of the whole message is in it if all that is said is, but for space around it.
        """
        own = f"\ue002{self.slots.setdefault(slot, len(self.slots))}\ue003"
        if slot.is_whole or self.ask(slot, "has all", ()):
            return mark_of(slot.message) + (own if slot.steps else "")
        return own


def answer(question: Question, contents: Sequence[str]) -> bool:
    """Return the answer to a question in a chat of these contents."""
    slot, name, arguments = question
    text = slot.value(contents)
    match name:
        case "has text":
            return bool(text)
        case "has all":
            return contents[slot.message].strip() in text
        case _:
            return bool(getattr(text, name)(*arguments))


def mark_of(message: int) -> str:
    """Return the text that stands for what a message says."""
    return f"\ue000{message}\ue001"


class Said:
    """A text of which some parts are what messages say. It is no ``str``, on purpose:
    whatever Python or a library does with it that is not written here fails.
    """

    __slots__ = ("_parts", "_trace")

    def __init__(self, trace: Trace, parts: tuple[Part, ...]) -> None:
        """Join parts; what is done with them is noted in the trace."""
        self._trace, self._parts = trace, parts

    def __str__(self) -> str:
        """Return the text with a mark for each part that a message says."""
        marks = (part if isinstance(part, str) else self._trace.mark(part) for part in self._parts)
        return "".join(marks)

    def __add__(self, other: object) -> Said:
        """Put a text after this one."""
        return Said(self._trace, self._parts + _parts(other))

    def __radd__(self, other: object) -> Said:
        """Put a text before this one."""
        return Said(self._trace, _parts(other) + self._parts)

    def strip(self, *characters: str) -> Said:
        """Note that both ends are trimmed."""
        return self._then("strip", characters)

    def lstrip(self, *characters: str) -> Said:
        """Note that the start is trimmed."""
        return self._then("lstrip", characters)

    def rstrip(self, *characters: str) -> Said:
        """Note that the end is trimmed."""
        return self._then("rstrip", characters)

    def split(self, separator: str) -> _Pieces:
        """Return the pieces; the first and the last can be taken."""
        return _Pieces(self._trace, self._slot(), (_plain(separator),))

    def startswith(self, text: str) -> bool:
        """Ask what it begins with."""
        return self._ask("startswith", text)

    def endswith(self, text: str) -> bool:
        """Ask what it ends with."""
        return self._ask("endswith", text)

    def __contains__(self, text: str) -> bool:
        """Ask what is in it."""
        return self._ask("__contains__", text)

    def __eq__(self, other: object) -> bool:
        """Ask whether it is a certain text; it is never anything else."""
        return isinstance(other, (str, Said)) and self._ask("__eq__", other)

    def __bool__(self) -> bool:
        """Ask whether there is any text."""
        if any(isinstance(part, str) and part for part in self._parts):
            return True
        return self._trace.ask(self._slot(), "has text", ())

    def __getattr__(self, name: str) -> NoReturn:
        """Give up on all other methods."""
        raise UntraceableError(name)

    def __getitem__(self, index: object) -> NoReturn:
        """Give up on single characters."""
        raise UntraceableError("characters")

    def __format__(self, how: str) -> NoReturn:
        """Give up on formatting, which would hide where the text went."""
        raise UntraceableError("format")

    def __repr__(self) -> NoReturn:
        """Give up on being shown as a part of something."""
        raise UntraceableError("repr")

    __hash__ = None  # type: ignore[assignment]

    def _then(self, name: str, arguments: Sequence[object]) -> Said:
        slot = self._slot().then(name, tuple(map(_plain, arguments)))
        return Said(self._trace, (slot,))

    def _ask(self, name: str, argument: object) -> bool:
        return self._trace.ask(self._slot(), name, (_plain(argument),))

    def _slot(self) -> Slot:
        if len(self._parts) != 1 or not isinstance(self._parts[0], Slot):
            raise UntraceableError("a joined text")
        return self._parts[0]


class _Pieces:
    """A text that was split. There is always a first and a last piece."""

    def __init__(self, trace: Trace, slot: Slot, arguments: Arguments) -> None:
        self._trace, self._slot, self._arguments = trace, slot, arguments

    def __getitem__(self, index: int) -> Said:
        if index not in (0, -1):
            raise UntraceableError("pieces")
        return Said(self._trace, (self._slot.then("split", self._arguments, index),))

    def __getattr__(self, name: str) -> NoReturn:
        raise UntraceableError(name)


def _parts(value: object) -> tuple[Part, ...]:
    if isinstance(value, Said):
        return value._parts
    return (_plain(value),)


def _plain(value: Any) -> str:
    if not isinstance(value, str):
        raise UntraceableError("no plain text")
    return value
