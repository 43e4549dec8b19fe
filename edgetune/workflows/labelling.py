"""How probable each label is after each text, with one pass over text and label for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import EvalResult
from edgetune.data import Examples, MicroBatch
from edgetune.data.batches import micro_batch_of
from edgetune.data.encode import Learned
from edgetune.data.labels import LabelSet
from edgetune.data.schedule import PaddedSchedules
from edgetune.data.token_store import token_store_of
from edgetune.errors import UsageError
from edgetune.metrics.labels import LabelScores, score_labels
from edgetune.workflows.in_parts import in_parts
from edgetune.workflows.opened import Opened

_AT_ONCE = 4096
"""Texts with a label each that are prepared at one time."""


def label_scores(
    run: Opened, rows: Examples, labels: LabelSet, found: NDArray[np.float64] | None = None
) -> LabelScores:
    """Return how well a model tells the labels of rows apart; ``found`` are its log-probabilities,
    computed here where they are not given.

    Raises:
        UsageError: if a row has none of the labels, or text and label are longer than the model's
            positions.
        OutOfMemoryError: if not even one text fits.
    """
    expected = labels.indices(rows, run.tokenizer)
    if -1 in expected:
        raise UsageError(f"{rows.place(expected.index(-1))} has none of the labels.")
    return score_labels(
        log_probs(run, rows, labels) if found is None else found, expected, labels.names
    )


def log_probs(run: Opened, rows: Examples, labels: LabelSet) -> NDArray[np.float64]:
    """Return the log-probability of each label as the answer to each text, (rows, labels)."""
    block = max(1, _AT_ONCE // len(labels.names))
    parts = [
        _of_block(run, rows.take(np.arange(start, min(start + block, len(rows)))), labels)
        for start in range(0, len(rows), block)
    ]
    return np.concatenate(parts)


def _of_block(run: Opened, rows: Examples, labels: LabelSet) -> NDArray[np.float64]:
    answered = [
        _answered(tokens, mask, answer) for tokens, mask in rows for answer in labels.answers
    ]
    columns = token_store_of(answered, range(len(answered)))
    longest = int(columns.lengths.max())
    if longest > run.positions:
        raise UsageError(
            f"A text with its label has {longest} tokens, and {run.plan.model.ref} has positions "
            f"for {run.positions}. Leave out rows that long."
        )
    examples = Examples.of(columns, rows.locations)
    schedule = PaddedSchedules(columns.lengths, longest, run.plan.choice.micro_batch).by_length()
    found = np.zeros(len(answered))
    for index in range(len(schedule)):
        numbers = np.concatenate(schedule.rows_of(index))
        batch = micro_batch_of(examples, schedule, index)
        results = in_parts(run, batch, partial(_each_row, run))
        found[numbers] = [-result.loss_sum for result in results]
    return found.reshape(len(rows), -1)


def _answered(tokens: NDArray[np.int32], mask: NDArray[np.bool_], answer: Sequence[int]) -> Learned:
    """Return a row's text with a label as its answer."""
    start = int(mask.argmax())
    whole = np.concatenate([tokens[:start], np.array(answer, np.int32)])
    return Learned(whole, [(start, len(whole))])


def _each_row(run: Opened, parts: Sequence[MicroBatch]) -> list[EvalResult]:
    return [
        result
        for part in parts
        for result in run.session.evaluate_rows(part, [run.adapter] * len(part.tokens))
    ]
