"""What is wrong with a file of examples, collected so that all of it is told at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from edgetune.errors import DataError
from edgetune.escapes import one_line

SHOWN = 8
LONGEST = 600


class RowError(ValueError):
    """One row cannot be used; the message says what was found and what to do.

    ``is_alike`` says that it holds for most rows of the file, so that once is enough to tell it.
    """

    def __init__(self, what: str, *, is_alike: bool = False) -> None:
        """Take the message."""
        super().__init__(what)
        self.is_alike = is_alike


class Problem(NamedTuple):
    """What is wrong with a row, by its number, or with a file as a whole."""

    number: int | None
    what: str
    is_alike: bool = False


def printable(text: str) -> str:
    """Return a text from a file so that it can be shown: one line, no control characters, short.

    >>> printable("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\\\nb'
    """
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return one_line(cut)


@dataclass(slots=True)
class Problems:
    """The first problems in full and the number of all of them."""

    shown: list[str] = field(default_factory=list)
    count: int = 0
    _alike: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, what: str, *, is_alike: bool = False) -> None:
        """Note one problem at ``place`` (``chats.jsonl:12``), once of those that are alike."""
        self.count += 1
        if is_alike and what in self._alike:
            self._alike[what] += 1
        elif len(self.shown) < SHOWN:
            self.shown.append(printable(f"{place}: {what}"))
            if is_alike:
                self._alike[what] = 0

    def raise_if_any(self, headline: str, advice: str = "") -> None:
        """Raise what was found, if anything was, under a headline.

        Raises:
            DataError: with the first problems and how many more there are.
        """
        if self.count:
            raise DataError("\n".join([f"{headline}: {self.count}", *self._listed(advice)]))

    def _listed(self, advice: str) -> list[str]:
        alike = sum(self._alike.values())
        more = self.count - len(self.shown) - alike
        lines = [*self.shown, *([f"and {more} more."] if more else [])]
        lines += [f"{alike} more rows are refused for the same reason."] if alike else []
        return [f"  {line}" for line in lines] + ([advice] if advice else [])
