"""A file read with the settings of a training, those that suit it, and all of its rows together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from edgetune.data import Dataset, Tokenizer
from edgetune.errors import DataError, UsageError
from edgetune.model import resolve
from edgetune.planning import Plan
from edgetune.settings.spec import OBJECTIVE_SETTINGS, Training
from edgetune.workflows.planning import read_rows


def read_as_trained(
    plan: Plan, data: Path, label_names: tuple[str, ...] = ()
) -> tuple[Tokenizer, Dataset]:
    """Return the tokenizer of a plan's model, and a file with all of its rows in ``train``.

    Columns may have the names that the plan's file had, or those that the formats know; labels that
    are numbers have the names that the plan gives them, else ``label_names``. What learned from
    pairs takes pairs, and plain answers too. Rows are not fitted to a context.

    Raises:
        UsageError: if its columns or labels suit in no such way.
        DataError: if it is not there, or rows cannot be read.
    """
    if plan.objective is None:
        return _read(plan, data, label_names, ())
    try:
        return _read(plan, data, label_names, ("objective", "share_prompts", *OBJECTIVE_SETTINGS))
    except DataError as error:
        with suppress(DataError):
            return _read(plan, data, label_names, ())
        raise error from None


def _read(
    plan: Plan, data: Path, label_names: tuple[str, ...], objective: Sequence[str]
) -> tuple[Tokenizer, Dataset]:
    """Return a file read with the training's settings, also those of the ``objective`` named."""
    training = plan.training
    names_kept = ("loss_on", "seed", "long_rows", *objective)
    kept = {name: getattr(training, name) for name in names_kept}
    named = training.label_names or label_names
    ways = dict.fromkeys(product((training.fields, None), (named, ())))
    refused: UsageError | None = None
    for fields, names in ways:
        try:
            whole = Training(**kept, validation=0.0, fields=fields, label_names=names)
            return read_rows(resolve(plan.model.ref), data, whole, by_name=False)
        except UsageError as error:
            refused = refused or error
    assert refused is not None
    raise refused
