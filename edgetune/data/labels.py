"""Labels of texts: their names, and what each is as an answer in the model's own vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgetune.data.content import Labelled
from edgetune.data.encode import Encoder, Learned
from edgetune.data.examples import Examples
from edgetune.data.problems import RowError, printable
from edgetune.data.tokenizer import Tokenizer
from edgetune.errors import DataError

FORMAT = "text/label"

MOST_LABELS = 1_000
"""With more labels than this, a column of that name is something else."""

_EXAMPLE = "text"


def label_name(value: Any, names: Sequence[str]) -> str:
    """Return the name of a row's label: a text, or a number with ``names`` or without.

    Raises:
        RowError: if it is none, or a number that has no name.
    """
    if isinstance(value, bool):
        value = int(value) if names else str(value).lower()
    if isinstance(value, str):
        value = value.strip()
        number = _number(value) if value not in names else None
    else:
        number = _number(value)
    if number is not None and names:
        if 0 <= number < len(names):
            return names[number]
        raise RowError(
            f"The label {number} has no name: there are {len(names)}, for 0 to {len(names) - 1}."
            " Correct it or remove the row."
        )
    if number is not None:
        return str(number)
    if not isinstance(value, str):
        raise RowError(f"The label must be a text or a whole number; found {value!r:.40}.")
    if not value:
        raise RowError("The label is empty. Fill it in or remove the row.")
    if names and value not in names:
        raise RowError(
            f"The label {value!r:.40} is not one of --label-names: {', '.join(names)}.",
        )
    return value


def _number(value: Any) -> int | None:
    """Return the whole number that a label is, None if it is none.

    >>> _number(2), _number(2.0), _number("02"), _number("2.5"), _number("two")
    (2, 2, 2, None, None)
    """
    if isinstance(value, str):
        digits = value.removeprefix("-")
        return int(value) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None
    return int(value) if isinstance(value, (int, float)) and value == value // 1 else None


@dataclass(frozen=True)
class LabelSet:
    """Labels by name, and the tokens that are learned of each, its end of turn included."""

    names: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, names: Sequence[str]) -> LabelSet:
        """Return labels as this model writes them.

        Raises:
            DataError: if the model cannot tell two of them apart.
        """
        encoder = Encoder(tokenizer, "assistant")
        marked = [encoder.mark(Labelled(_EXAMPLE, name)) for name in names]
        answers = tuple(_learned(found) for found in encoder.encode(marked))
        by_answer: dict[tuple[int, ...], str] = {}
        for name, answer in zip(names, answers, strict=True):
            if (other := by_answer.setdefault(answer, name)) != name:
                raise DataError(
                    printable(f"The labels {other!r} and {name!r} are the same tokens here.")
                )
        return cls(tuple(names), answers)

    def indices(self, examples: Examples, tokenizer: Tokenizer) -> list[int]:
        """Return the number of each example's label, -1 where it has none of them."""
        return [
            self._by_answer.get(
                answer := tuple(tokens[mask].tolist()), self._by_text(answer, tokenizer)
            )
            for tokens, mask in examples
        ]

    def counts(self, examples: Examples, tokenizer: Tokenizer) -> dict[str, int]:
        """Return how many examples have each label, the most frequent first."""
        found = Counter(
            self.names[index] for index in self.indices(examples, tokenizer) if index >= 0
        )
        return dict(found.most_common())

    @cached_property
    def _by_answer(self) -> dict[tuple[int, ...], int]:
        return {answer: index for index, answer in enumerate(self.answers)}

    def _by_text(self, answer: tuple[int, ...], tokenizer: Tokenizer) -> int:
        """Return the label of tokens that are cut otherwise beside their row's text."""
        if answer in self._by_answer:
            return -1
        said = tokenizer.decode([token for token in answer if token not in tokenizer.end_tokens])
        return self.names.index(said.strip()) if said.strip() in self.names else -1


def _learned(found: Learned) -> tuple[int, ...]:
    parts = [found.tokens[max(start, 1) : stop] for start, stop in found.ranges]
    return tuple(np.concatenate(parts).tolist())
