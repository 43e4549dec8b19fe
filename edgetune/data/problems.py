"""What is wrong with a file of examples, collected so that all of it is told at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgetune.errors import DataError

SHOWN = 10
LONGEST = 400


class RowError(ValueError):
    """One row cannot be used; the message says what was found and what to do."""


def printable(text: str) -> str:
    """Return a text from a file so that it can be shown: one line, no control characters, short.

    >>> printable("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\\\nb'
    """
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


@dataclass(slots=True)
class Problems:
    """The first problems in full and the number of all of them."""

    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, place: str, what: str) -> None:
        """Note one problem at ``place`` (``chats.jsonl:12``)."""
        self.count += 1
        if self.count <= SHOWN:
            self.shown.append(printable(f"{place}: {what}"))

    def raise_if_any(self, headline: str, advice: str = "") -> None:
        """Raise what was found, if anything was, under a headline.

        Raises:
            DataError: with the first problems and how many more there are.
        """
        if self.count:
            raise DataError("\n".join([f"{headline}: {self.count}", *self._listed(advice)]))

    def _listed(self, advice: str) -> list[str]:
        more = self.count - len(self.shown)
        lines = [*self.shown, *([f"and {more} more."] if more else [])]
        return [f"  {line}" for line in lines] + ([advice] if advice else [])
