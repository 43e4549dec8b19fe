"""A file of examples, read and tokenized once, then fitted to any context.

``read_dataset`` is the whole way: find the files, read the rows, tell their format, render and
mask them, tokenize, hold some back for validation, and account for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import get_args

import numpy as np

from edgetune.data.account import receipt_of_reading, with_fit, with_split
from edgetune.data.encode import LossOn
from edgetune.data.examples import Examples, Integers
from edgetune.data.fit import LongRows, fit, refuse_long
from edgetune.data.read import RowReader
from edgetune.data.receipt import Receipt
from edgetune.data.split import count_duplicates, held_out, row_hashes
from edgetune.data.tokenizer import Tokenizer
from edgetune.errors import DataError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples to train on and to validate with, and their receipt.

    ``lengths`` (rows,) are the tokens of every row as it came, for the planner; ``whole`` are
    both sides before a length rule. ``fingerprint`` changes with the rows, the tokenizer, the
    template or any option.
    """

    train: Examples
    validation: Examples
    receipt: Receipt
    lengths: Integers
    fingerprint: str
    long_rows: LongRows
    whole: tuple[Examples, Examples]
    whole_fingerprint: str

    def fit(self, context: int) -> Dataset:
        """Return the same rows with the length rule applied for a context.

        Raises:
            DataError: naming rows that are too long, unless a rule says what to do with them;
                or if no row is left to train on.
            UsageError: if a context has no room for one prediction.
        """
        if context < 2:
            raise UsageError(f"A context of {context} has no room for anything to learn.")
        if self.long_rows == "refuse":
            refuse_long(self.whole, context)
        train, validation = (fit(part, context, self.long_rows) for part in self.whole)
        if not len(train.examples):
            raise DataError(f"No row is left to train on within a context of {context}.")
        return replace(
            self,
            train=train.examples,
            validation=validation.examples,
            receipt=with_fit(
                self.receipt, context, self.long_rows, self.whole, (train, validation)
            ),
            fingerprint=_hash(self.whole_fingerprint, context, self.long_rows),
        )


def read_dataset(
    path: Path,
    tokenizer: Tokenizer,
    *,
    context: int | None = None,
    loss_on: LossOn = "assistant",
    validation: float = 0.1,
    seed: int = 0,
    long_rows: LongRows | None = None,
    fields: Mapping[str, str] | None = None,
) -> Dataset:
    """Read a file or folder of examples for a model.

    Without a ``context`` no length rule is applied; ``Dataset.fit`` does it later. The rule is
    to split texts and to refuse other rows, unless ``long_rows`` says otherwise. ``fields``
    maps the fields of a format to the columns of the file.

    Raises:
        DataError: with everything that is wrong with the file.
        ModelError: if the model cannot be trained on such rows.
        UsageError: if the options make no sense together.
    """
    _check(validation, seed, loss_on, long_rows)
    reading = RowReader(tokenizer, loss_on, fields or {}).read(path)
    examples, rule = reading.examples, _rule(long_rows, reading.format)
    hashes = row_hashes(examples, seed)
    held = held_out(hashes, validation)
    train, validated = (examples.take(np.flatnonzero(side)) for side in (~held, held))
    fingerprint = _fingerprint(examples, loss_on, validation, seed)
    duplicates = count_duplicates(hashes)
    receipt = receipt_of_reading(
        reading, tokenizer, loss_on=loss_on, seed=seed, duplicates=duplicates
    )
    dataset = Dataset(
        train=train,
        validation=validated,
        receipt=with_split(receipt, train, validated),
        lengths=examples.lengths,
        fingerprint=fingerprint,
        long_rows=rule,
        whole=(train, validated),
        whole_fingerprint=fingerprint,
    )
    return dataset if context is None else dataset.fit(context)


def _check(validation: float, seed: int, loss_on: str, long_rows: str | None) -> None:
    if not 0 <= validation < 1:
        raise UsageError(f"--validation must be a share from 0 to under 1; found {validation}.")
    if seed < 0:
        raise UsageError(f"A seed must not be negative; found {seed}.")
    if loss_on not in get_args(LossOn):
        raise UsageError(f"No --loss-on {loss_on}. Known: {', '.join(get_args(LossOn))}.")
    if long_rows is not None and long_rows not in get_args(LongRows):
        raise UsageError(f"No --long-rows {long_rows}. Known: {', '.join(get_args(LongRows))}.")


def _rule(asked: LongRows | None, format_: str) -> LongRows:
    if asked == "split" and format_ != "text":
        raise UsageError(
            f"--long-rows split is for text; these rows are {format_}, and a piece of one would"
            " lack its beginning. Use cut or drop, or a larger --context."
        )
    return asked or ("split" if format_ == "text" else "refuse")


def _fingerprint(examples: Examples, *options: object) -> str:
    parts = (examples.tokens, examples.mask, examples.offsets)
    return _hash(*(sha256(part.tobytes()).hexdigest() for part in parts), *options)


def _hash(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()
