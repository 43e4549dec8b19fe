"""Rows of a file whose prompts are attacked: of some variants of each, the one predicted worst."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from edgetune.data import Examples, parse_fields
from edgetune.data.attacks import attacked_row, attacked_text
from edgetune.data.content import Content, Labelled
from edgetune.data.declared_labels import declared_names
from edgetune.data.fields import renamed
from edgetune.data.files import find_sources
from edgetune.data.formats import detect
from edgetune.data.labels import label_name
from edgetune.data.problems import RowError
from edgetune.errors import DataError, UsageError
from edgetune.workflows.opened import Opened
from edgetune.workflows.scoring import rows_of

Losses = Callable[[Examples], NDArray[np.float64]]
"""From rows to the loss of each."""


def answered_rows(opened: Opened, data: Path) -> Examples:
    """Return the rows of a file, each with one answer.

    Raises:
        UsageError: if they are preferences.
    """
    rows = rows_of(opened, data)
    if rows.kind is not None:
        raise UsageError(
            f"{data} has rows of preferences, which are weighed, not answered: give rows with plain "
            "answers."
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackableRows:
    """Rows of a file as a run reads them, and what each holds."""

    opened: Opened
    data: Path
    fields: Mapping[str, str]
    rows: Examples
    contents: tuple[Content, ...]

    @classmethod
    def read(cls, opened: Opened, data: Path) -> AttackableRows:
        """Return the rows of a file.

        Raises:
            UsageError: if they are preferences, or there are not as many examples as rows.
            DataError: if one of them has no prompt.
        """
        training, rows = opened.plan.training, answered_rows(opened, data)
        fields = parse_fields(training.fields) if training.fields else {}
        names = training.label_names or opened.label_names
        contents = tuple(_contents(data, fields, names))
        if len(contents) != len(rows):
            raise UsageError(
                f"{data} has {len(contents)} rows, of which {len(rows)} examples are made: longer ones "
                "are left out or cut into several. Give rows that fit."
            )
        for number, content in enumerate(contents):
            try:
                attacked_row(content, str)
            except RowError as error:
                raise DataError(f"{rows.place(number)} cannot be attacked: {error}") from None
        return cls(opened=opened, data=data, fields=fields, rows=rows, contents=contents)

    def attacked(
        self, attack: str, losses: Losses, folder: Path, *, tries: int, seed: int
    ) -> Examples:
        """Return the rows under an attack, of ``tries`` variants of each the worst.

        That is the one of the greatest loss; NaN counts as greater than any.
        """
        worst, highest = [""] * len(self.contents), np.full(len(self.contents), -np.inf)
        for number in range(tries):
            change = partial(attacked_text, attack=attack, rng=Random(f"{seed}:{attack}:{number}"))
            lines = [_line(attacked_row(each, change), self.fields) for each in self.contents]
            found = np.nan_to_num(losses(self._read(lines, folder)), nan=np.inf)
            worse = found > highest
            worst = [new if x else old for x, new, old in zip(worse, lines, worst, strict=True)]
            highest = np.maximum(highest, found)
        return self._read(worst, folder)

    def _read(self, lines: list[str], folder: Path) -> Examples:
        """Return attacked rows as the run reads them.

        Raises:
            UsageError: if some cannot be read any more, such as those that are too long for the model.
        """
        file = folder / self.data.with_suffix(".attacked.jsonl").name
        file.write_text("".join(lines), "utf-8")
        lost = f"Rows of {self.data} cannot be used any more once they are attacked"
        try:
            rows = rows_of(self.opened, file)
        except (UsageError, DataError) as error:
            raise UsageError(f"{lost}: {error}") from error
        if len(rows) != len(lines):
            raise UsageError(
                f"{lost}: some are longer than the {self.opened.positions} positions that "
                f"{self.opened.plan.model.ref} has for them. Leave out the longest."
            )
        return rows


def _contents(
    data: Path, fields: Mapping[str, str], label_names: tuple[str, ...]
) -> Iterator[Content]:
    """Yield what the rows of a file hold, which was read before without a fault."""
    sources = find_sources(data)[0]
    names = label_names or declared_names(sources, fields.get("label", "label"))
    for source in sources:
        for chunk in source.blocks(0, lambda _: None):
            for _, value in chunk.rows:
                row = renamed(json.loads(value) if chunk.is_json else value, fields)
                content = detect(row, fields.keys()).read(row)
                if isinstance(content, Labelled):
                    content = replace(content, label=label_name(content.label, names))
                yield content


def _line(row: Mapping[str, object], fields: Mapping[str, str]) -> str:
    named = {fields.get(name, name): value for name, value in row.items()}
    return json.dumps(named) + "\n"
