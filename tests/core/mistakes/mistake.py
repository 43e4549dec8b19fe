"""One mistake: what was typed, on what files, and what must be answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A line as it was typed behind ``edgetune``, its exit code, and words of the answer.

    ``link`` is the thread that it is taken from. ``files`` lie in the folder where it is typed,
    beside ``rows.jsonl`` with usable rows.
    """

    line: str
    code: int
    says: tuple[str, ...]
    link: str = ""
    files: Mapping[str, str | bytes] = field(default_factory=dict)


def thread(repository: str, number: int) -> str:
    """Return the address of an issue's or a pull request's thread."""
    return f"https://github.com/{repository}/issues/{number}"


def jsonl(*rows: Any) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)
