"""What is done when a run is trained."""

from __future__ import annotations

from dataclasses import dataclass

ANSWER = 64
"""Tokens of a sample's answer at most."""

BEGINNING = 32
"""Tokens of a row of plain text that a sample goes on from, half of the row at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """What is done when a run is trained: a verdict, and ``samples`` held-out rows answered."""

    verdict: bool = True
    samples: int = 3


AFTER = After()
