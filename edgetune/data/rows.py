"""A block of rows to tokens, each row accepted or refused by its number.

This is what runs in every worker process, and in the main one while the format is not known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np

from edgetune.data.chunks import Chunk
from edgetune.data.content import Content, Labelled, Pair, Rated, RowContent
from edgetune.data.encode import Encoder, Learned, LossOn, Marked
from edgetune.data.fields import Mapped, renamed
from edgetune.data.formats import Fields, Format, detect_among, named
from edgetune.data.json_text import JsonReader, reason_of
from edgetune.data.labels import label_name
from edgetune.data.messages import refuse_media
from edgetune.data.preference import refuse_other_preference, refuse_preference
from edgetune.data.problems import Problem, RowError
from edgetune.data.row_formats import ROW_FORMATS
from edgetune.data.token_store import TokenStore, token_store_of
from edgetune.data.tokenizer import Tokenizer
from edgetune.objectives import Rows

FIELDS_NAMED = 20
"""As many fields as are of no use are told by name."""
_UNENDED = (
    " The line ends before the row does. Put each row on one line, or all of them into a list in a"
    " .json file."
)


@dataclass(slots=True)
class Outcome:
    """What became of a block: its rows as columns, or what is wrong, in the order of the file.

    ``altered`` are the rows of which the template leaves out or changes a part; ``unwritten``
    counts the rows with a field of messages that it passes over, ``cuts`` those whose last answer
    lacks an end of the generation prompt (``""``: none), ``unended`` those with a turn that is
    learned without its end.
    """

    file: int
    columns: TokenStore
    format: str | None = None
    is_chat: bool = False
    problems: list[Problem] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)
    altered: list[int] = field(default_factory=list)
    mapped: Mapped = field(default_factory=Mapped)
    unwritten: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    unended: int = 0
    same: int = 0
    """Pairs whose answers do not differ."""
    labels: Counter[str] = field(default_factory=Counter)


class BlockEncoder:
    """Turns blocks into tokens for one model; the first row decides the format of all."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        loss_on: LossOn,
        fields: Mapping[str, str],
        format_: str | None = None,
        kind: Rows | None = None,
        label_names: Sequence[str] = (),
    ) -> None:
        """Prepare for rows of a ``kind``, None: of plain answers.

        ``fields`` maps our field names to the file's, ``format_`` is found if None,
        ``label_names`` are those of labels that are numbers.
        """
        self._encoder, self._fields = Encoder(tokenizer, loss_on), fields
        self._mapped, self._kind = frozenset(fields.values()), kind
        self._formats = ROW_FORMATS[kind]
        self._label_names = label_names
        self._format = named(self._formats, format_) if format_ else None
        self._json = JsonReader()

    @property
    def format(self) -> str | None:
        """The name of the format, None before a row told it."""
        return self._format.name if self._format else None

    def encode(self, block: Chunk, *, only_check: bool = False) -> Outcome:
        """Return the rows of a block as tokens, or, with ``only_check``, what is wrong alone."""
        outcome = Outcome(
            block.file, token_store_of([], []), problems=[Problem(*fault) for fault in block.faults]
        )
        accepted = [
            (number, marked)
            for number, value in block.rows
            if (marked := self._accepted(number, value, block.is_json, outcome)) is not None
        ]
        if not only_check:
            self._tokenize(accepted, outcome)
        outcome.problems.sort(key=lambda problem: problem.number or float("inf"))
        outcome.format = self.format
        return outcome

    def _accepted(
        self, number: int, value: Any, is_json: bool, outcome: Outcome
    ) -> tuple[Marked, ...] | None:
        """Return the documents of a row, None if it is refused."""
        try:
            return self._mark(number, _parsed(self._json, value) if is_json else value, outcome)
        except RowError as error:
            outcome.problems.append(Problem(number, str(error), error.is_alike))
        except RecursionError:
            outcome.problems.append(Problem(number, "The row is nested too deeply."))
        return None

    def _mark(self, number: int, value: object, outcome: Outcome) -> tuple[Marked, ...]:
        row = renamed(value, self._fields)
        if self._fields and isinstance(value, dict):
            outcome.mapped.add(value, self._fields)
        if self._kind is None:
            refuse_preference(row, self._mapped)
        format_ = self._format or self._detected(row)
        if not format_.matches(row):
            format_.refuse_null(row)
            raise RowError(
                f"This row has the fields of {self._detected(row).name}, the rows"
                f" before it those of {format_.name}. Put rows of different formats in different files."
            )
        self._format = format_
        refuse_media(row)
        if len(outcome.unused) < FIELDS_NAMED:
            outcome.unused |= row.keys() - format_.fields
        content = format_.read(row)
        if isinstance(content, Labelled):
            content = replace(content, label=label_name(content.label, self._label_names))
            outcome.labels[content.label] += 1
        if isinstance(content, Rated):
            marked = self._marked(number, content.answer, outcome)
            return (replace(marked, is_desirable=content.is_desirable),)
        if not isinstance(content, Pair):
            return (self._marked(number, content, outcome),)
        return tuple(
            self._marked(number, each, outcome) for each in (content.chosen, content.rejected)
        )

    def _detected(self, row: Fields) -> Format[RowContent]:
        plain = self._kind is None
        if self._kind is not None and not any(format_.matches(row) for format_ in self._formats):
            for format_ in self._formats:
                format_.refuse_null(row)
            refuse_other_preference(row, self._kind)
        return detect_among(self._formats, row, self._fields.keys(), propose=plain)

    def _marked(self, number: int, content: Content, outcome: Outcome) -> Marked:
        outcome.is_chat |= self._encoder.is_chat(content)
        marked = self._encoder.mark(content)
        if marked.altered and number not in outcome.altered[-1:]:
            outcome.altered.append(number)
        outcome.cuts[marked.cut] += 1
        outcome.unended += marked.is_unended
        for name in sorted(marked.unwritten):
            if name in outcome.unwritten or len(outcome.unwritten) < FIELDS_NAMED:
                outcome.unwritten[name] += 1
        return marked

    def _tokenize(self, accepted: list[tuple[int, tuple[Marked, ...]]], outcome: Outcome) -> None:
        encoded = iter(self._encoder.encode([one for _, marked in accepted for one in marked]))
        rows: list[Learned] = []
        lines: list[int] = []
        for number, marked in accepted:
            documents = [next(encoded) for _ in marked]
            outcome.same += len(documents) == 2 and _are_same(*documents)
            if all(map(_is_learned, documents)):
                rows.append(reduce(Learned.followed, documents))
                lines.append(number)
            else:
                nothing = "No token of this row can be learned. Remove it."
                outcome.problems.append(Problem(number, nothing))
        outcome.columns = token_store_of(rows, lines)


def _are_same(one: Learned, other: Learned) -> bool:
    return np.array_equal(one.tokens, other.tokens) and one.ranges == other.ranges


def _is_learned(document: Learned) -> bool:
    return any(stop > max(start, 1) for start, stop in document.ranges)


def _parsed(json_: JsonReader, text: str) -> object:
    """Return the value of a JSON text.

    Raises:
        RowError: if it is none, or names a key twice.
    """
    try:
        value = json_.value(text)
    except json.JSONDecodeError as error:
        more = _UNENDED if _ends_early(text, error) else ""
        raise RowError(
            f"This is not JSON: {reason_of(error)} at column {error.colno}.{more}"
        ) from error
    except ValueError as error:
        raise RowError(f"This is not JSON: {error}.") from error
    except RecursionError as error:
        raise RowError("This is not JSON: it is nested too deeply.") from error
    if problem := json_.problem():
        raise RowError(problem)
    return value


def _ends_early(text: str, error: json.JSONDecodeError) -> bool:
    """Whether a text is the beginning of JSON that goes on elsewhere."""
    return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
