"""Finished runs put to use: scores on other rows, text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import exp, isfinite
from os.path import realpath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import load_adapter
from edgetune.backend import (
    DEFAULT_ADAPTER,
    DeviceOutOfMemoryError,
    EvalResult,
    GenerateOptions,
    Session,
)
from edgetune.buckets import bucket
from edgetune.data import Examples, MicroBatch, Tokenizer, evaluation_batches, load_tokenizer
from edgetune.data.batch import split
from edgetune.data.template import Message
from edgetune.errors import CheckFailedError, OutOfMemoryError, UsageError
from edgetune.memory.generation import cache_bytes, rows_at_once
from edgetune.model import LocalModel, resolve
from edgetune.planning import Plan
from edgetune.runs import RunFolder
from edgetune.settings.spec import Training
from edgetune.units import format_bytes
from edgetune.workflows.opening import open_adapted, open_planned
from edgetune.workflows.planning import read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """A run whose adapter is loaded; several over the same base share a session."""

    folder: RunFolder
    plan: Plan
    model: LocalModel
    tokenizer: Tokenizer
    session: Session
    adapter: str | None = DEFAULT_ADAPTER
    """Name of its adapter in the session; None: the base model alone."""

    def base(self) -> OpenedRun:
        """Return the same without the adapter."""
        return replace(self, adapter=None)

    def generate(self, prompt: str | Sequence[Message], options: GenerateOptions) -> Iterator[str]:
        """Yield the continuation piece by piece, without the token that ends it."""
        tokens = self.prompt_tokens(prompt)
        options = self.within_positions(options, len(tokens))
        done: list[int] = []
        shown = ""
        with _fitting(self, len(tokens), options):
            for _, token in self.session.generate([tokens], options, adapters=[self.adapter]):
                if token in options.end_tokens:
                    break
                done.append(token)
                text = self.tokenizer.decode(done)
                if not text.endswith("\ufffd"):  # half of a character waits for its other half
                    yield text[len(shown) :]
                    shown = text
        yield self.tokenizer.decode(done)[len(shown) :]

    def prompt_tokens(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            UsageError: if there are none, or the model has no positions for so many.
        """
        cut = "" if self.adapter is None else self.folder.prompt_cut()
        tokens = self.tokenizer.prompt_tokens(prompt, cut)
        if not tokens:
            raise UsageError("The prompt is empty: it has no token to go on from. Give some text.")
        if len(tokens) > self.positions:
            raise UsageError(
                f"The prompt has {len(tokens)} tokens, and {self.plan.model.ref} has positions "
                f"for {self.positions}. Give a shorter one."
            )
        return tokens

    @property
    def positions(self) -> int:
        """How many tokens the model has positions for, besides those that the method takes."""
        method = None if self.adapter is None else self.plan.choice.method
        before = 0 if method is None else method.virtual_tokens + method.positions
        return self.model.shape.max_context - before

    def within_positions(self, options: GenerateOptions, prompt: int) -> GenerateOptions:
        """Return the options with answers that end at the model's last position."""
        rest = self.positions - prompt + 1  # the last token of an answer takes none
        return replace(options, max_tokens=max(1, min(options.max_tokens, rest)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well rows are predicted. ``exact_match`` is None where no answers were generated."""

    loss: float
    perplexity: float
    accuracy: float
    rows: int
    exact_match: float | None


def open_run(path: Path) -> OpenedRun:
    """Return a finished run with its adapter loaded.

    Raises:
        UsageError: if it is no run folder, or the run has not finished.
        ModelError: if the model or the adapter is missing or damaged.
    """
    adapter = RunFolder.open(path).finished_adapter()
    folder, plan, model = open_planned(path)
    session = open_adapted(plan, model, load_adapter(adapter, model.shape))
    return OpenedRun(
        folder=folder,
        plan=plan,
        model=model,
        tokenizer=load_tokenizer(model.folder, model.shape.vocabulary),
        session=session,
    )


def open_runs(paths: Sequence[Path]) -> list[OpenedRun]:
    """Return finished runs over one base model, which is loaded once, as the first run's plan says.

    Raises:
        UsageError: if a run is given twice, or if their base models differ or are not computed
            with in the same way; else as :func:`open_run`.
    """
    places = [realpath(path) for path in paths]
    twice = next((path for i, path in enumerate(paths) if places[i] in places[:i]), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice. Once is enough.")
    first = open_run(paths[0])
    return [first, *(_beside(first, path) for path in paths[1:])]


def _beside(first: OpenedRun, path: Path) -> OpenedRun:
    """Return a run whose adapter joins the session of another."""
    file = RunFolder.open(path).finished_adapter()
    folder, plan, model = open_planned(path)
    if model.fingerprint != first.model.fingerprint:
        raise UsageError(
            f"{path} was trained on {plan.model.ref}, {first.folder.path} on "
            f"{first.plan.model.ref}: only runs over the same base model can be used together."
        )
    for name in ("quantization", "compute_dtype"):
        one, other = getattr(first.plan.choice, name), getattr(plan.choice, name)
        if one != other:
            raise UsageError(
                f"{path} was trained with {name} {other}, {first.folder.path} with {one}: "
                "together one of them would not be the model that was trained. "
                "Use them one at a time."
            )
    adapter = load_adapter(file, model.shape)
    name = realpath(path)  # no name of a folder can be that of the session's own adapter
    first.session.attach(name, adapter.method, adapter.tensors)
    return replace(first, folder=folder, plan=plan, adapter=name)


def answers(
    runs: Sequence[OpenedRun], prompts: Sequence[str | Sequence[Message]], options: GenerateOptions
) -> Iterator[str]:
    """Yield the answers of runs over one base: all of the first prompt, then of the next.

    Prompts and runs are computed together, as many as the first run's plan has memory for.
    """
    asked = [(run, run.prompt_tokens(prompt)) for prompt in prompts for run in runs]
    for tokens in _continued(asked, options):
        yield runs[0].tokenizer.decode(tokens)


def rows_of(run: OpenedRun, data: Path) -> Examples:
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


def score(run: OpenedRun, rows: Examples, *, exact_match: bool) -> Scores:
    """Return how well rows are predicted."""
    context = int(rows.lengths.max())
    batches = evaluation_batches(rows, context=context, micro_batch=run.plan.choice.micro_batch)
    result = EvalResult()
    for batch in batches:
        result += _evaluated(run, batch)
    loss = result.loss_sum / result.loss_tokens
    if not isfinite(loss):
        which = "of the base model" if run.adapter is None else f"of {run.folder.path}"
        raise CheckFailedError(f"The loss {which} on these rows is {loss}, which is no number.")
    return Scores(
        loss=loss,
        perplexity=exp(min(loss, 700.0)),
        accuracy=result.correct / result.loss_tokens,
        rows=result.rows,
        exact_match=_exact_match(run, rows) if exact_match else None,
    )


def _evaluated(run: OpenedRun, batch: MicroBatch) -> EvalResult:
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


@contextmanager
def _fitting(run: OpenedRun, prompt: int, options: GenerateOptions) -> Iterator[None]:
    """Say what took the memory when a prompt cannot be continued in it."""
    try:
        yield
    except DeviceOutOfMemoryError as error:
        size = cache_bytes(run.model.shape, run.plan.choice, prompt + options.max_tokens)
        raise OutOfMemoryError(
            f"A prompt of {prompt} tokens with an answer of up to {options.max_tokens} keeps "
            f"{format_bytes(size)} of keys and values, which do not fit: {error}. Close other "
            "programs, or ask for less with --max-tokens."
        ) from None


def _exact_match(run: OpenedRun, rows: Examples) -> float:
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
    asked: Sequence[tuple[OpenedRun, list[int]]], options: GenerateOptions
) -> Iterator[list[int]]:
    """Yield the tokens after each prompt, without the one that ends them."""
    run = asked[0][0]
    longest = max(len(prompt) for _, prompt in asked)
    options = max(
        (one.within_positions(options, len(prompt)) for one, prompt in asked),
        key=lambda found: found.max_tokens,
    )
    count = rows_at_once(
        run.model.shape, run.plan.choice, run.plan.memory, prompt=longest, answer=options.max_tokens
    )
    for start in range(0, len(asked), count):
        part = asked[start : start + count]
        found: list[list[int]] = [[] for _ in part]
        prompts, adapters = [prompt for _, prompt in part], [one.adapter for one, _ in part]
        with _fitting(run, longest, options):
            for row, token in run.session.generate(prompts, options, adapters=adapters):
                if token not in options.end_tokens:
                    found[row].append(token)
        yield from found
