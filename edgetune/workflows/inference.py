"""Runs, adapters and models put to use: scores on rows, answers to many prompts."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import DeviceOutOfMemoryError, EvalResult, GenerateOptions
from edgetune.buckets import bucket
from edgetune.data import Examples, MicroBatch, evaluation_batches
from edgetune.data.batch import split
from edgetune.data.template import Message
from edgetune.errors import CheckFailedError, OutOfMemoryError, UsageError
from edgetune.memory.generation import rows_at_once
from edgetune.model import resolve
from edgetune.settings.spec import Training
from edgetune.workflows.opened import Opened, TextStream, fitting
from edgetune.workflows.planning import read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well rows are predicted. ``exact_match`` is None where no answers were generated."""

    loss: float
    perplexity: float
    accuracy: float
    rows: int
    exact_match: float | None


def answers(
    runs: Sequence[Opened], prompts: Sequence[str | Sequence[Message]], options: GenerateOptions
) -> Iterator[str]:
    """Yield the answers of runs over one base: all of the first prompt, then of the next.

    Prompts and runs are computed together, as many as the first run's plan has memory for.
    """
    asked = [(run, run.prompt_tokens(prompt)) for prompt in prompts for run in runs]
    for tokens in _continued(asked, options):
        yield runs[0].tokenizer.decode(tokens)


def streamed(
    asked: Sequence[tuple[Opened, list[int]]], options: GenerateOptions
) -> Generator[tuple[int, str], None, None]:
    """Yield pieces of the answers to prompts, each with the number of its prompt, as they come.

    They are computed together, as many as the first plan has memory for.
    """
    texts = [TextStream(one.tokenizer) for one, _ in asked]
    for numbers, tokens in _together(asked, options):
        for number, token in tokens:
            if token not in options.end_tokens and (piece := texts[number].add(token)):
                yield number, piece
        yield from ((number, rest) for number in numbers if (rest := texts[number].rest()))


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
    """Return how well rows are predicted."""
    context = int(rows.lengths.max())
    batches = evaluation_batches(rows, context=context, micro_batch=run.plan.choice.micro_batch)
    result = EvalResult()
    for batch in batches:
        result += _evaluated(run, batch)
    loss = result.loss_sum / result.loss_tokens
    if not isfinite(loss):
        which = "of the base model" if run.adapter is None else f"of {run.name}"
        raise CheckFailedError(f"The loss {which} on these rows is not finite ({loss}).")
    return Scores(
        loss=loss,
        perplexity=exp(min(loss, 700.0)),
        accuracy=result.correct / result.loss_tokens,
        rows=result.rows,
        exact_match=_exact_match(run, rows) if exact_match else None,
    )


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


def _exact_match(run: Opened, rows: Examples) -> float:
    """Return the share of rows whose last answer is the most probable one, to the letter."""
    ends = run.tokenizer.end_tokens
    asked = [_question(*rows[index], ends) for index in range(len(rows))]
    longest = max(len(wanted) for _, wanted in asked) + 8
    options = GenerateOptions(max_tokens=longest, end_tokens=ends)
    found = _continued([(run, prompt) for prompt, _ in asked], options)
    decode = run.tokenizer.decode
    alike = (
        decode(tokens).strip() == decode(wanted).strip()
        for tokens, (_, wanted) in zip(found, asked, strict=True)
    )
    return sum(alike) / len(asked)


def _question(
    tokens: NDArray[np.int32], mask: NDArray[np.bool_], ends: frozenset[int]
) -> tuple[list[int], list[int]]:
    """Return what comes before the last answer of a row, and that answer without its end."""
    start = int(np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0) == 1)[-1])
    wanted = [int(token) for token in tokens[start:][mask[start:]] if token not in ends]
    return tokens[:start].tolist(), wanted


def _continued(
    asked: Sequence[tuple[Opened, list[int]]], options: GenerateOptions
) -> Iterator[list[int]]:
    """Yield the tokens after each prompt, without the one that ends them."""
    for numbers, tokens in _together(asked, options):
        found: dict[int, list[int]] = {number: [] for number in numbers}
        for number, token in tokens:
            if token not in options.end_tokens:
                found[number].append(token)
        yield from found.values()


def _together(
    asked: Sequence[tuple[Opened, list[int]]], options: GenerateOptions
) -> Iterator[tuple[range, Iterator[tuple[int, int]]]]:
    """Yield which prompts are continued together, and their tokens with a prompt's number each."""
    run = asked[0][0]
    longest = max(len(prompt) for _, prompt in asked)
    options = max(
        (one.within_positions(options, len(prompt)) for one, prompt in asked),
        key=lambda found: found.max_tokens,
    )
    count = rows_at_once(
        run.model.shape, run.plan.choice, run.plan.memory, prompt=longest, answer=options.max_tokens
    )

    def tokens(start: int) -> Iterator[tuple[int, int]]:
        part = asked[start : start + count]
        prompts, adapters = [prompt for _, prompt in part], [one.adapter for one, _ in part]
        with fitting(run, longest, options):
            for row, token in run.session.generate(prompts, options, adapters=adapters):
                yield start + row, token

    for start in range(0, len(asked), count):
        yield range(start, min(start + count, len(asked))), tokens(start)
