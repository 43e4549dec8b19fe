"""How well rows are predicted and answered, all together and one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import EvalResult, GenerateOptions
from edgetune.data import Dataset, Examples, evaluation_batches
from edgetune.data.labels import LabelSet
from edgetune.errors import CheckFailedError, UsageError
from edgetune.metrics.labels import LabelScores
from edgetune.metrics.texts import score_texts
from edgetune.settings.spec import values
from edgetune.workflows.as_trained import read_as_trained
from edgetune.workflows.in_parts import in_parts
from edgetune.workflows.inference import continued
from edgetune.workflows.labelling import label_scores, log_probs
from edgetune.workflows.opened import Opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well rows are predicted, and how well they are answered where answers were generated.

    ``loss`` is the mean over the learned tokens, ``accuracy`` the share of them that were the
    most probable ones; the others are those of :class:`edgetune.metrics.texts.TextScores`. Of
    pairs, ``loss`` is the objective's, ``accuracy`` the share told apart, and there are ``rewards``.
    """

    loss: float
    perplexity: float | None
    accuracy: float
    rows: int
    exact_match: float | None = None
    token_f1: float | None = None
    rouge_l: float | None = None
    json_valid: float | None = None
    json_equal: float | None = None
    labels: LabelScores | None = None
    """How well labels are told apart, where rows are texts with labels."""
    rewards: Mapping[str, float] | None = None
    """Of chosen and rejected answers, their margin and accuracy, by the names of ``metrics.jsonl``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """One row: what goes in, what is expected, and each model's answer and loss, by its name."""

    place: str
    input: str
    expected: str
    answers: Mapping[str, str]
    losses: Mapping[str, float]


def rows_of(run: Opened, data: Path) -> Examples:
    """Return all rows of a file as the run would read them, none held back."""
    return dataset_of(run, data).train


def dataset_of(run: Opened, data: Path, beside: Sequence[Opened] = ()) -> Dataset:
    """Return a file as the run would read it, with all of its rows in ``train``.

    They fit the positions that the run and those ``beside`` it have for tokens. Columns may have the
    names that the run's file had, or those that the formats know; labels that are numbers have the
    names that they had in training.
    """
    _, dataset = read_as_trained(run.plan, data, run.label_names)
    longest = int(dataset.lengths.max())
    positions = min(each.positions for each in (run, *beside))
    if longest > positions and dataset.long_rows == "refuse":
        raise UsageError(
            f"A row of {data} has {longest} tokens, and {run.plan.model.ref} has positions for "
            f"{positions}{_taken(run, positions)}. Leave out rows that long."
        )
    limit = max(run.plan.choice.context, longest)
    return dataset.fit(min(limit, positions))


def _taken(run: Opened, positions: int) -> str:
    taken = run.model.shape.max_context - positions
    return f" besides the {taken} of an adapter" if taken else ""


def labels_of(opened: Sequence[Opened], dataset: Dataset) -> tuple[LabelSet | None, list[str]]:
    """Return the labels that rows may have, None without labels; and what to say of them.

    They are those that the runs were trained on, then others that the rows have.
    """
    there = dataset.receipt.labels.get("trained")
    if there is None:
        return None, []
    trained = dict.fromkeys(name for one in opened for name in one.labels)
    unknown = [name for name in there if name not in trained]
    notices = (
        [f"Labels that were not trained: {', '.join(unknown)}."] if trained and unknown else []
    )
    return LabelSet.of(opened[0].tokenizer, (*trained, *unknown)), notices


def score(run: Opened, rows: Examples, *, exact_match: bool) -> Scores:
    """Return how well rows are predicted; with ``exact_match`` how well they are answered, too."""
    return _scores(run, rows, answered(run, rows) if exact_match else None)


@dataclass(frozen=True, slots=True)
class Replies:
    """What models say to rows, by the models' names.

    ``answers`` are to all rows or to the first of them, ``labels`` the log-probabilities (N, K).
    """

    answers: Mapping[str, Sequence[str]]
    labels: Mapping[str, NDArray[np.float64]]


def score_each(
    opened: Mapping[str, Opened],
    rows: Examples,
    labels: LabelSet | None = None,
    *,
    exact_match: bool,
    show: int,
) -> tuple[dict[str, Scores], list[ScoredRow]]:
    """Return the scores of models by name, and the first ``show`` rows one by one.

    ``labels`` are those that the rows may have, where they are texts with labels.
    """
    replies = replies_of(opened, rows, labels, exact_match=exact_match, show=show)
    return score_replies(opened, rows, labels, replies, exact_match=exact_match, show=show)


def replies_of(
    opened: Mapping[str, Opened],
    rows: Examples,
    labels: LabelSet | None,
    *,
    exact_match: bool,
    show: int,
) -> Replies:
    """Return what models say to all rows, or to the first ``show`` of them.

    Raises:
        UsageError: if rows of preferences are to be answered.
    """
    if rows.kind is not None and (exact_match or show):
        raise UsageError(
            "Rows of preferences are weighed, not answered: leave out --exact-match and --show, or "
            "give rows with plain answers."
        )
    asked = rows if exact_match else rows.take(np.arange(min(show, len(rows))))
    return Replies(
        {name: answered(one, asked) if len(asked) else [] for name, one in opened.items()},
        {}
        if labels is None
        else {name: log_probs(one, rows, labels) for name, one in opened.items()},
    )


def score_replies(
    opened: Mapping[str, Opened],
    rows: Examples,
    labels: LabelSet | None,
    replies: Replies,
    *,
    exact_match: bool,
    show: int,
) -> tuple[dict[str, Scores], list[ScoredRow]]:
    """Return the scores of models and the first rows, as :func:`score_each`, from their replies."""
    scores = {}
    for name, one in opened.items():
        found = _scores(one, rows, replies.answers[name] if exact_match else None)
        if labels is not None:
            told = label_scores(one, rows, labels, replies.labels[name])
            found = replace(found, labels=told)
        scores[name] = found
    shown = range(min(show, len(rows)))
    return scores, [_row(opened, rows, index, replies.answers) for index in shown]


def answered(run: Opened, rows: Examples) -> list[str]:
    """Return the most probable answer to what stands before the last answer of each row."""
    ends = run.tokenizer.end_tokens
    asked = [question(*example, ends) for example in rows]
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
    texts = {} if said is None else values(score_texts(said, expected_of(run, rows)))
    return Scores(
        loss=loss,
        perplexity=None if result.rewards else exp(min(loss, 700.0)),
        accuracy=result.correct / result.loss_tokens,
        rows=result.rows,
        rewards=result.metrics or None,
        **texts,
    )


def _row(
    opened: Mapping[str, Opened], rows: Examples, index: int, said: Mapping[str, Sequence[str]]
) -> ScoredRow:
    run, row = next(iter(opened.values())), rows.take(np.array([index]))
    prompt, _ = question(*row[0], run.tokenizer.end_tokens)
    results = {name: _result(one, row, 1) for name, one in opened.items()}
    return ScoredRow(
        place=rows.place(index),
        input=run.tokenizer.decode(prompt),
        expected=expected_of(run, row)[0],
        answers={name: texts[index] for name, texts in said.items()},
        losses={name: found.loss_sum / found.loss_tokens for name, found in results.items()},
    )


def expected_of(run: Opened, rows: Examples) -> list[str]:
    """Return the last answer of each row."""
    ends = run.tokenizer.end_tokens
    return [run.tokenizer.decode(question(*example, ends)[1]) for example in rows]


def _result(run: Opened, rows: Examples, micro_batch: int) -> EvalResult:
    """Return the sums over all rows."""
    context, result = int(rows.lengths.max()), EvalResult()
    evaluate = partial(run.session.evaluate, adapter=run.adapter)
    for batch in evaluation_batches(rows, context=context, micro_batch=micro_batch):
        result += in_parts(run, batch, evaluate)
    return result.settled()


def question(
    tokens: NDArray[np.int32], mask: NDArray[np.bool_], ends: frozenset[int]
) -> tuple[list[int], list[int]]:
    """Return what comes before the last answer of a row, and that answer without its end."""
    start = int(np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0) == 1)[-1])
    wanted = [int(token) for token in tokens[start:][mask[start:]] if token not in ends]
    return tokens[:start].tolist(), wanted
