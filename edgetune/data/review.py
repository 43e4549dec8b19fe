"""What a look at all rows teaches: near-duplicates, leaks, answers given away, languages, secrets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os.path import commonprefix
from typing import Any

import numpy as np

from edgetune.data.dataset import Dataset
from edgetune.data.examples import Examples
from edgetune.data.languages import language_of
from edgetune.data.near_duplicates import near_duplicates, words_of
from edgetune.data.personal_data import personal_data, veiled
from edgetune.data.problems import printable
from edgetune.data.tokenizer import Tokenizer

MOST_ROWS = 100_000
"""More rows are not looked at: pairs of them are kept in memory."""

_GIVEN_WORDS = 4  # an answer of fewer words may well stand in its question
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in one row, beside another row or as a veiled text."""

    place: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What was found in the rows that are trained and those for validation.

    ``near`` are rows that say almost the same as one before them on their side, ``leaks`` rows for
    validation that say almost the same as one that is trained, ``given`` rows whose answer stands
    in what is before it. ``personal`` is None where it was not asked for.
    """

    rows: int
    near: tuple[Finding, ...]
    leaks: tuple[Finding, ...]
    given: tuple[Finding, ...]
    languages: dict[str, int]
    personal: dict[str, tuple[Finding, ...]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield the review as text to print."""
        spoken = Counter(self.languages).most_common()
        shares = ", ".join(f"{name} {count / self.rows:.0%}" for name, count in spoken[:5])
        yield f"{'Languages':<12}{shares}"
        yield from _counted("Near", "rows say almost the same as another", self.near)
        yield from _counted("Leaks", "rows for validation say almost what is trained", self.leaks)
        yield from _counted("Given", "rows have their answer in the question", self.given)
        for kind, found in (self.personal or {}).items():
            yield f"{'Personal':<12}{kind}: {len(found):,}"
            yield from (printable(f"  {each.place}: {each.what}") for each in found)
        if self.personal is not None:
            yield f"{'':<12}found by patterns alone: there may be more"


def review(dataset: Dataset, tokenizer: Tokenizer, *, pii: bool = False) -> Review | None:
    """Look at all rows of a dataset; None if there are more than :data:`MOST_ROWS`."""
    sides = (dataset.train, dataset.validation)
    if sum(map(len, sides)) > MOST_ROWS:
        return None
    halves = [pair for side in sides for pair in _halves(side, tokenizer)]
    places = [side.place(number) for side in sides for number in range(len(side))]
    texts = _without_beginning(["\n".join(pair) for pair in halves])
    trained = len(dataset.train)
    first = near_duplicates(texts)
    pairs = [(number, int(first[number])) for number in np.flatnonzero(first >= 0).tolist()]
    alike = {
        is_leak: tuple(
            Finding(places[row], f"like {places[other]}")
            for row, other in pairs
            if (row >= trained > other) is is_leak
        )
        for is_leak in (False, True)
    }
    given = [
        Finding(place, "") for place, pair in zip(places, halves, strict=True) if _is_given(*pair)
    ]
    return Review(
        rows=len(texts),
        near=alike[False],
        leaks=alike[True],
        given=tuple(given),
        languages=dict(Counter(map(language_of, texts))),
        personal=_personal(places, ["\n".join(pair) for pair in halves]) if pii else None,
    )


def _without_beginning(texts: list[str]) -> list[str]:
    """Return texts without what all begin with, such as a system prompt."""
    if len(set(texts)) < 2:
        return texts
    shared = len(commonprefix([min(texts), max(texts)]))  # noqa: RUF071 (no paths)
    return [text[shared:] for text in texts]


def _personal(places: list[str], texts: list[str]) -> dict[str, tuple[Finding, ...]]:
    found: dict[str, list[Finding]] = {}
    for place, text in zip(places, texts, strict=True):
        for kind, finding in personal_data(text):
            found.setdefault(kind, []).append(Finding(place, veiled(finding)))
    return {kind: tuple(findings) for kind, findings in sorted(found.items())}


def _halves(side: Examples, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Yield of each row what is only read and what is learned, without special tokens."""
    for number in range(len(side)):
        tokens, mask = side[number]
        plain = ~tokenizer.is_special[tokens]
        yield (
            tokenizer.decode(tokens[plain & ~mask].tolist()),
            tokenizer.decode(tokens[plain & mask].tolist()),
        )


def _is_given(prompt: str, answer: str) -> bool:
    words = words_of(answer)
    return (
        len(words) >= _GIVEN_WORDS and f" {' '.join(words)} " in f" {' '.join(words_of(prompt))} "
    )


def _counted(title: str, what: str, found: tuple[Finding, ...]) -> Iterator[str]:
    if found:
        named = ", ".join(f"{each.place} {each.what}".strip() for each in found[:_SHOWN])
        more = "" if len(found) <= _SHOWN else ", …"
        yield printable(f"{title:<12}{len(found):,} {what}: {named}{more}")
