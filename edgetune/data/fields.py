"""``--fields``: columns of a file under the names that a format knows them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune.data.formats import Fields, kind_of, named
from edgetune.data.problems import RowError, printable
from edgetune.data.row_formats import ALL_FORMATS
from edgetune.errors import UsageError

_NAMED = 20
_USUAL = ("prompt", "completion", "messages", "text")


@dataclass(slots=True)
class Mapped:
    """What rows have of the columns that are mapped.

    ``found`` are those columns, ``others`` the first of the rest, ``shadowed`` the columns that
    are not read because another one takes their name.
    """

    found: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    shadowed: set[str] = field(default_factory=set)

    def add(self, row: Mapping[str, Any], fields: Mapping[str, str]) -> None:
        """Note the columns of a row."""
        columns = row.keys() & fields.values()
        self.found |= columns
        if len(self.others) < _NAMED:
            self.others |= row.keys() - columns
        self.shadowed |= {
            name for name, column in fields.items() if column in columns and name in row
        } - set(fields.values())

    def join(self, other: Mapped) -> None:
        """Add what was noted elsewhere."""
        self.found |= other.found
        if len(self.others) < _NAMED:
            self.others |= other.others
        self.shadowed |= other.shadowed

    def refuse_missing(self, fields: Mapping[str, str]) -> None:
        """Refuse columns that no row has, if there are rows at all.

        Raises:
            UsageError: naming them, and the columns that there are.
        """
        missing = sorted(set(fields.values()) - self.found)
        there = sorted(self.found | self.others)
        if missing and there:
            raise UsageError(
                printable(
                    f"--fields names {', '.join(missing)}, and no row has such a column. There"
                    f" are: {', '.join(there[:_NAMED])}."
                )
            )


def parse_fields(text: str) -> dict[str, str]:
    """Return our names of fields and those of the file, from ``ours=theirs,…``.

    Raises:
        UsageError: if a part of it is no such pair, or names a field that no format has.
    """
    from difflib import get_close_matches

    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    fields = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    known = sorted({name for format_ in ALL_FORMATS for name in format_.fields})
    for ours, theirs in fields.items():
        if ours not in known or not theirs:
            near = get_close_matches(ours, known, n=4, cutoff=0.4) or _USUAL
            raise UsageError(
                f"--fields is made of FIELD=COLUMN, such as completion=answer; found "
                f"{ours}={theirs}. Fields are {', '.join(near)} and others (docs/data.md)."
            )
    if len(fields) < len(pairs) or not fields:
        raise UsageError(f"--fields must name each field once; found {text}.")
    return fields


def refuse_unknown(fields: Mapping[str, str], format_: str) -> None:
    """Refuse fields that the format of the rows does not have.

    Raises:
        UsageError: naming them, and those that it has.
    """
    known = named(ALL_FORMATS, format_).fields
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise UsageError(
            f"--fields names {', '.join(unknown)}, and rows of {format_} have no such field."
            f" They have: {', '.join(sorted(known))}."
        )


def renamed(row: Any, fields: Mapping[str, str]) -> Fields:
    """Return the row with its columns under the names of ``fields`` (ours to theirs).

    Raises:
        RowError: if the row is not an object with named fields.
    """
    if not isinstance(row, dict):
        raise RowError(f"A row is an object with named fields; found {kind_of(row)}.")
    if not fields:
        return row
    given = {name: row[column] for name, column in fields.items() if column in row}
    taken = set(fields.values()) | set(given)
    return {**{name: value for name, value in row.items() if name not in taken}, **given}
