"""How well rows are predicted and answered, all together and one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import DeviceOutOfMemoryError, EvalResult, GenerateOptions
from edgetune.buckets import bucket
from edgetune.data import Examples, MicroBatch, evaluation_batches
from edgetune.data.batch import split
from edgetune.errors import CheckFailedError, OutOfMemoryError, UsageError
from edgetune.metrics import score_texts
from edgetune.model import resolve
from edgetune.settings.spec import Training, values
from edgetune.workflows.inference import continued
from edgetune.workflows.opened import Opened
from edgetune.workflows.planning import read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well rows are predicted, and how well they are answered where answers were generated.

    ``loss`` is the mean over the learned tokens, ``accuracy`` the share of them that were the
    most probable ones; the others are those of :class:`edgetune.metrics.TextScores`.
    """

    loss: float
    perplexity: float
    accuracy: float
    rows: int
    exact_match: float | None = None
    token_f1: float | None = None
    rouge_l: float | None = None
    json_valid: float | None = None
    json_equal: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """One row: what goes in, what is expected, and each model's answer and loss, by its name."""

    place: str
    input: str
    expected: str
    answers: Mapping[str, str]
    losses: Mapping[str, float]


def rows_of(run: Opened, data: Path) -> Examples:
    """Return all rows of a file as the run would read them, none held back.

    Its columns may have the names that the run's file had, or those that the formats know.
    """
    training = run.plan.training
    kept = {name: getattr(training, name) for name in ("loss_on", "seed", "long_rows", "fields")}
    source, whole = resolve(run.plan.model.ref), Training(**kept, validation=0.0)
    try:
        _, dataset = read_rows(source, data, whole, by_name=False)
    except UsageError:
        if whole.fields is None:
            raise
        _, dataset = read_rows(source, data, replace(whole, fields=None), by_name=False)
    longest, positions = int(dataset.lengths.max()), run.model.shape.max_context
    if longest > positions and dataset.long_rows == "refuse":
        raise UsageError(
            f"A row of {data} has {longest} tokens, and {run.plan.model.ref} has positions for "
            f"{positions}. Leave out rows that long."
        )
    limit = max(run.plan.choice.context, longest)
    return dataset.fit(min(limit, positions)).train


def score(run: Opened, rows: Examples, *, exact_match: bool) -> Scores:
    """Return how well rows are predicted; with ``exact_match`` how well they are answered, too."""
    return _scores(run, rows, answered(run, rows) if exact_match else None)


def score_each(
    opened: Mapping[str, Opened], rows: Examples, *, exact_match: bool, show: int
) -> tuple[dict[str, Scores], list[ScoredRow]]:
    """Return the scores of models by name, and the first ``show`` rows one by one."""
    asked = rows if exact_match else rows.take(np.arange(min(show, len(rows))))
    said = {name: answered(one, asked) if len(asked) else [] for name, one in opened.items()}
    scores = {
        name: _scores(one, rows, said[name] if exact_match else None)
        for name, one in opened.items()
    }
    return scores, [_row(opened, rows, index, said) for index in range(min(show, len(rows)))]


def answered(run: Opened, rows: Examples) -> list[str]:
    """Return the most probable answer to what stands before the last answer of each row."""
    ends = run.tokenizer.end_tokens
    asked = [_question(*example, ends) for example in rows]
    longest = max(len(wanted) for _, wanted in asked) + 8
    options = GenerateOptions(max_tokens=longest, end_tokens=ends)
    found = continued([(run, prompt) for prompt, _ in asked], options)
    return [run.tokenizer.decode(tokens) for tokens in found]


def _scores(run: Opened, rows: Examples, said: Sequence[str] | None) -> Scores:
    result = _result(run, rows, run.plan.choice.micro_batch)
    loss = result.loss_sum / result.loss_tokens
    if not isfinite(loss):
        which = "of the base model" if run.adapter is None else f"of {run.name}"
        raise CheckFailedError(f"The loss {which} on these rows is not finite ({loss}).")
    texts = {} if said is None else values(score_texts(said, _expected(run, rows)))
    return Scores(
        loss=loss,
        perplexity=exp(min(loss, 700.0)),
        accuracy=result.correct / result.loss_tokens,
        rows=result.rows,
        **texts,
    )


def _row(
    opened: Mapping[str, Opened], rows: Examples, index: int, said: Mapping[str, Sequence[str]]
) -> ScoredRow:
    run, row = next(iter(opened.values())), rows.take(np.array([index]))
    prompt, _ = _question(*row[0], run.tokenizer.end_tokens)
    results = {name: _result(one, row, 1) for name, one in opened.items()}
    return ScoredRow(
        place=rows.place(index),
        input=run.tokenizer.decode(prompt),
        expected=_expected(run, row)[0],
        answers={name: texts[index] for name, texts in said.items()},
        losses={name: found.loss_sum / found.loss_tokens for name, found in results.items()},
    )


def _expected(run: Opened, rows: Examples) -> list[str]:
    ends = run.tokenizer.end_tokens
    return [run.tokenizer.decode(_question(*example, ends)[1]) for example in rows]


def _result(run: Opened, rows: Examples, micro_batch: int) -> EvalResult:
    """Return the sums over all rows."""
    context, result = int(rows.lengths.max()), EvalResult()
    for batch in evaluation_batches(rows, context=context, micro_batch=micro_batch):
        result += _evaluated(run, batch)
    return result


def _evaluated(run: Opened, batch: MicroBatch) -> EvalResult:
    """Return the loss of a micro-batch, a few of its rows at a time.

    These rows may be longer than those of the plan: fewer of them are as many tokens. Where even
    they run out of memory, there are fewer still.
    """
    width, planned = batch.tokens.shape[1], run.plan.choice.micro_batch * run.plan.choice.context
    rows = max(1, min(len(batch.tokens), planned // bucket(width)))
    while True:
        try:
            return run.session.evaluate(split((batch,), rows), adapter=run.adapter)
        except DeviceOutOfMemoryError as error:
            if rows == 1:
                raise OutOfMemoryError(
                    f"A row of {width} tokens does not fit: {error}. Close other programs, or "
                    "leave out what is longer than the rows that the run was planned for."
                ) from None
            rows //= 2


def _question(
    tokens: NDArray[np.int32], mask: NDArray[np.bool_], ends: frozenset[int]
) -> tuple[list[int], list[int]]:
    """Return what comes before the last answer of a row, and that answer without its end."""
    start = int(np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0) == 1)[-1])
    wanted = [int(token) for token in tokens[start:][mask[start:]] if token not in ends]
    return tokens[:start].tolist(), wanted
