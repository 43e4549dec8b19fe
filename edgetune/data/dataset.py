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

from edgetune.data.declared_labels import declared_names
from edgetune.data.encode import LossOn
from edgetune.data.examples import Examples
from edgetune.data.fit import LongRows, fit, refuse_long
from edgetune.data.labels import FORMAT
from edgetune.data.read import Options, ReadProgress, Report, read_rows
from edgetune.data.receipt import Receipt
from edgetune.data.receipt_builder import receipt_of, with_fit
from edgetune.data.splits import find_splits, split
from edgetune.data.token_store import Counts
from edgetune.data.tokenizer import Tokenizer
from edgetune.errors import DataError, UsageError
from edgetune.objectives import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples to train on and to validate with, and their receipt.

    ``lengths`` (rows,) are the tokens of every row as it came, for the planner, those that answers
    share counted once; ``unfitted`` is the dataset before a length rule, None if none was applied. ``fingerprint`` changes with the
    rows, the tokenizer, the template or any option.
    """

    train: Examples
    validation: Examples
    receipt: Receipt
    lengths: Counts
    fingerprint: str
    long_rows: LongRows
    unfitted: Dataset | None = None

    def fit(self, context: int) -> Dataset:
        """Return the same rows with the length rule applied for a context.

        Raises:
            DataError: naming rows that are too long, unless a rule says what to do with them;
                or if no row is left to train on.
            UsageError: if a context has no room for one prediction.
        """
        if context < 2:
            raise UsageError(f"A context of {context} has no room for anything to learn.")
        unfitted = self.unfitted or self
        whole = unfitted.train, unfitted.validation
        if self.long_rows == "refuse":
            refuse_long(whole, context)
        train, validation = (fit(part, context, self.long_rows) for part in whole)
        if not len(train.examples):
            raise DataError(f"No row is left to train on within a context of {context}.")
        return replace(
            self,
            train=train.examples,
            validation=validation.examples,
            receipt=with_fit(unfitted.receipt, context, self.long_rows, whole, (train, validation)),
            fingerprint=_hash(unfitted.fingerprint, context, self.long_rows),
            unfitted=unfitted,
        )


def read_dataset(
    path: Path,
    tokenizer: Tokenizer,
    *,
    context: int | None = None,
    loss_on: LossOn = "assistant",
    validation: float = 0.1,
    validation_data: Path | None = None,
    by_name: bool = True,
    seed: int = 0,
    long_rows: LongRows | None = None,
    fields: Mapping[str, str] | None = None,
    kind: Rows | None = None,
    label_names: tuple[str, ...] = (),
    share_prompts: bool = False,
    report: Report | None = None,
    processes: int | None = None,
) -> Dataset:
    """Read a file or folder of examples for a model.

    Without a ``context`` no length rule is applied; ``Dataset.fit`` does it later. The rule is
    to split texts and to refuse other rows, unless ``long_rows`` says otherwise. ``fields``
    maps the fields of a format to the columns of the file. ``kind`` says what rows are to an
    objective over answers, None for plain answers. ``label_names`` are those of labels
    that are numbers, else those that the files declare. ``share_prompts`` lets both answers of a
    pair share the tokens of their prompt. ``validation_data`` is a file or
    folder to validate with, in place of a share; so are the files of a folder whose names say so,
    unless ``by_name`` is false. ``report`` is told how far reading has come, ``processes`` do it
    (default: by the size of the files and the cores).

    Raises:
        DataError: with everything that is wrong with the file.
        ModelError: if the model cannot be trained on such rows.
        UsageError: if the options make no sense together.
    """
    _check(validation, seed, loss_on, long_rows)
    if kind is not None:
        _check_answers(loss_on, long_rows)
    found = find_splits(path, validation_data, by_name=by_name)
    column = (fields or {}).get("label", "label")
    options = Options(
        tokenizer=tokenizer,
        loss_on=loss_on,
        fields=fields or {},
        processes=processes,
        kind=kind,
        label_names=label_names or declared_names(found.sources, column),
    )
    reading = read_rows(found.sources, options, report or _tell_nobody)
    if share_prompts and kind == "pairs":
        reading = replace(reading, examples=reading.examples.sharing_prompts())
    _check_labels(reading.format, label_names, loss_on, long_rows)
    splits = split(reading, found, validation, seed)
    train, validated = (reading.examples.take(rows) for rows in (splits.train, splits.validation))
    split_into = found.validation, len(train), len(validated)
    fingerprint = _hash(
        sha256(reading.digests.data).hexdigest(), loss_on, validation, split_into, seed,
        *(["prompts shared"] if share_prompts else []),
    )  # fmt: skip
    dataset = Dataset(
        train=train,
        validation=validated,
        receipt=receipt_of(reading, found, splits, options, seed=seed),
        lengths=reading.examples.lengths,
        fingerprint=fingerprint,
        long_rows=_rule(long_rows, reading.format),
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


def _check_answers(loss_on: str, long_rows: str | None) -> None:
    if loss_on == "all":
        raise UsageError(
            "--loss-on all would weigh the prompts too, and a preference is about answers. Leave"
            " it out."
        )
    if long_rows in ("cut", "split"):
        raise UsageError(
            f"--long-rows {long_rows} would leave a piece of an answer to be preferred. Use drop,"
            " or a larger --context."
        )


def _check_labels(
    format_: str, names: tuple[str, ...], loss_on: str, long_rows: str | None
) -> None:
    if format_ != FORMAT and names:
        raise UsageError(
            f"--label-names is for rows of text and label; these are {format_}. If the columns have"
            " other names: --fields text=COLUMN,label=COLUMN"
        )
    if format_ == FORMAT and loss_on == "all":
        raise UsageError(
            "--loss-on all would learn the texts, too, and these rows are for their labels. Leave"
            " it out."
        )
    if format_ == FORMAT and long_rows in ("cut", "split"):
        raise UsageError(
            f"--long-rows {long_rows} would cut off labels. Use drop, or a larger --context."
        )


def _rule(asked: LongRows | None, format_: str) -> LongRows:
    if asked == "split" and format_ != "text":
        raise UsageError(
            f"--long-rows split is for text; these rows are {format_}, and a piece of one would"
            " lack its beginning. Use cut or drop, or a larger --context."
        )
    return asked or ("split" if format_ == "text" else "refuse")


def _tell_nobody(_: ReadProgress) -> None:
    pass


def _hash(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()
