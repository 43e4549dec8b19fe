"""The account of a file of examples: where every row and every token went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from edgetune.cautions import label_cautions, row_cautions
from edgetune.data.token_store import Counts
from edgetune.escapes import one_line

_PERCENTILES = (
    ("shortest", 0),
    ("p50", 50),
    ("p90", 90),
    ("p95", 95),
    ("p99", 99),
    ("longest", 100),
)
_SHOWN = 5
_LABELS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRead:
    """One file that was read: its name, the rows found in it and the hash of its bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row that is not used, where it stands and why."""

    place: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was read and what became of it.

    ``rows_read = rows_trained + rows_validation + len(dropped)``. ``tokens`` and
    ``loss_tokens`` count what is trained, ``lengths`` are percentiles of the rows as they came.
    ``context`` is None before a length rule was applied. ``rows_too_long`` are over it, of which
    ``rows_cut`` are left with fewer tokens and ``rows_too_long_dropped`` are gone; ``tokens_lost``
    counts the tokens of both. ``padding`` is the share of positions that are padding, None before
    batches are known. ``prompt_cut`` is the end of the template's generation prompt that no answer
    was trained after. ``answers`` are percentiles of the learned tokens of chosen and of rejected
    answers, where rows are pairs, or of desirable and undesirable ones. ``shared`` counts the tokens
    of prompts that both answers of a trained pair share; ``tokens`` and ``lengths`` have them once.
    ``labels`` counts the rows of each label that are ``trained`` and
    for ``validation``; ``label_names`` are those of labels that were numbers.
    """

    files: tuple[FileRead, ...]
    format: str
    rendering: str
    template: str | None
    special_tokens: Mapping[str, str | tuple[str, ...] | None]
    loss_on: str
    seed: int
    rows_read: int
    rows_trained: int = 0
    rows_validation: int = 0
    dropped: tuple[Dropped, ...] = ()
    duplicates: int
    examples_trained: int = 0
    examples_validation: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    lengths: Mapping[str, int]
    context: int | None = None
    long_rows: str | None = None
    rows_too_long: int = 0
    rows_cut: int = 0
    rows_too_long_dropped: int = 0
    tokens_lost: int = 0
    notes: tuple[str, ...]
    padding: float | None = None
    prompt_cut: str = ""
    answers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    shared: int = 0

    def with_padding(self, padding: float) -> Receipt:
        """Return the receipt with the share of padding, once batches are known."""
        return replace(self, padding=padding)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values for a JSON file."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the receipt as text to print, the most asked-for first."""
        return [f"{title:<12}{one_line(text)}" for title, text in self._entries()]

    def _entries(self) -> Iterator[tuple[str, str]]:
        for file in self.files:
            yield "File", f"{file.name}: {_count(file.rows, 'row')}, sha256 {file.sha256[:12]}"
        yield "Format", f"{self.format}, {self.rendering}"
        if self.template:
            yield "Template", self.template
        yield "Rows", self._rows()
        yield from self._dropped()
        yield "Tokens", f"{self.tokens:,}, of which {self.loss_tokens:,} are learned ({self._on()})"
        if self.shared:
            share = self.shared / (self.tokens + self.shared)
            yield (
                "Prompts",
                f"{self.shared:,} tokens computed once for both answers ({share:.0%} less)",
            )
        yield "Lengths", ", ".join(f"{name} {value:,}" for name, value in self.lengths.items())
        for name, lengths in self.answers.items():
            shown = ", ".join(f"{share} {value:,}" for share, value in lengths.items()) or "none"
            yield name.capitalize(), f"learned tokens: {shown}"
        for side, counts in self.labels.items():
            yield "Labels", f"{side}: {_labels(counts)}"
        yield from self._long()
        if self.padding is not None:
            yield "Padding", f"{self.padding:.1%} of all positions"
        yield "Special", ", ".join(f"{n} {_shown(t)}" for n, t in self.special_tokens.items())
        for note in self.notes:
            yield "Note", note
        for caution in self.cautions:
            yield "Caution", caution

    @property
    def cautions(self) -> tuple[str, ...]:
        """What these rows let one expect, where it is worth a word."""
        labels = self.labels.get("trained", {})
        return (
            *row_cautions(self.rows_trained, self.rows_validation),
            *label_cautions(labels, named=bool(self.label_names)),
        )

    def _rows(self) -> str:
        parts = [f"{self.rows_trained:,} trained", f"{self.rows_validation:,} validation"]
        same = f"; {self.duplicates:,} repeat another row" if self.duplicates else ""
        return f"{self.rows_read:,} = {' + '.join(parts)} + {len(self.dropped):,} dropped{same}"

    def _dropped(self) -> Iterator[tuple[str, str]]:
        for row in self.dropped[:_SHOWN]:
            yield "  dropped", f"{row.place}: {row.because}"
        if len(self.dropped) > _SHOWN:
            yield "  dropped", f"and {len(self.dropped) - _SHOWN:,} more"

    def _long(self) -> Iterator[tuple[str, str]]:
        if self.context is None:
            return
        if not self.rows_too_long:
            yield "Context", f"{self.context:,}; every row fits"
        else:
            cost = f"; {self.tokens_lost:,} tokens lost" if self.tokens_lost else ""
            yield "Context", f"{self.context:,}; {self._too_long()}{cost}"

    def _too_long(self) -> str:
        rows, cut, gone = self.rows_too_long, self.rows_cut, self.rows_too_long_dropped
        longer = _count(rows, "longer row")
        if cut and gone:
            return f"{longer}: {cut:,} cut, {gone:,} dropped"
        return f"{longer} {'cut' if cut else 'dropped' if gone else 'split into pieces'}"

    def _on(self) -> str:
        return {"assistant": "what the assistant says", "completion": "the last answer",
                "all": "everything"}.get(self.loss_on, self.loss_on)  # fmt: skip


def length_percentiles(lengths: Counts) -> dict[str, int]:
    """Return the percentiles that a receipt shows, each a length that occurs."""
    if not len(lengths):
        return {}
    shares = [share for _, share in _PERCENTILES]
    values = np.percentile(lengths, shares, method="higher")
    return {name: int(value) for (name, _), value in zip(_PERCENTILES, values, strict=True)}


def _labels(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    shown = [f"{name} {rows:,} ({rows / total:.0%})" for name, rows in counts.items()]
    more = len(shown) - _LABELS
    return ", ".join(shown[:_LABELS]) + (f" and {more:,} more" if more > 0 else "") or "none"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shown(token: str | tuple[str, ...] | None) -> str:
    return " ".join(token) if isinstance(token, tuple) else token or "none"
