"""A finished run put to use: scores on other rows, text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from pathlib import Path

import numpy as np

from edgetune.adapter_file import load_adapter
from edgetune.agent.opening import open_adapted, open_planned
from edgetune.agent.planning import read_rows
from edgetune.backend import GenerateOptions, Session
from edgetune.data import Examples, Tokenizer, evaluation_batches, load_tokenizer
from edgetune.data.template import Message
from edgetune.errors import CheckFailedError
from edgetune.model import LocalModel, resolve
from edgetune.plan import Plan
from edgetune.record import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """A run whose adapter is loaded."""

    folder: RunFolder
    plan: Plan
    model: LocalModel
    tokenizer: Tokenizer
    session: Session

    def generate(
        self, prompt: str | Sequence[Message], options: GenerateOptions, *, adapted: bool = True
    ) -> Iterator[str]:
        """Yield the continuation piece by piece, without the token that ends it."""
        tokens = self.tokenizer.prompt_tokens(prompt)
        done: list[int] = []
        shown = ""
        for token in self.session.generate(tokens, options, adapted=adapted):
            if token in options.end_tokens:
                break
            done.append(token)
            text = self.tokenizer.decode(done)
            if not text.endswith("\ufffd"):  # half of a character is shown with its other half
                yield text[len(shown) :]
                shown = text
        yield self.tokenizer.decode(done)[len(shown) :]


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
        tokenizer=load_tokenizer(model.folder),
        session=session,
    )


def rows_of(run: OpenedRun, data: Path) -> Examples:
    """Return all rows of a file as the run would read them, none held back."""
    training = run.plan.training
    whole = {name: getattr(training, name) for name in ("loss_on", "seed", "long_rows")}
    source = resolve(run.plan.model.ref)
    _, dataset = read_rows(source, data, type(training)(**whole, validation=0.0))
    limit = max(run.plan.choice.context, int(dataset.lengths.max()))
    return dataset.fit(min(limit, run.model.shape.max_context)).train


def score(run: OpenedRun, rows: Examples, *, adapted: bool, exact_match: bool) -> Scores:
    """Return how well rows are predicted, with the adapter or by the base model alone."""
    context = int(rows.lengths.max())
    batches = evaluation_batches(rows, context=context, micro_batch=run.plan.choice.micro_batch)
    result = run.session.evaluate(batches, adapted=adapted)
    loss = result.loss_sum / result.loss_tokens
    if not isfinite(loss):
        which = "with the adapter" if adapted else "of the base model"
        raise CheckFailedError(f"The loss {which} on these rows is {loss}, which is no number.")
    return Scores(
        loss=loss,
        perplexity=exp(min(loss, 700.0)),
        accuracy=result.correct / result.loss_tokens,
        rows=result.rows,
        exact_match=_exact_match(run, rows, adapted) if exact_match else None,
    )


def _exact_match(run: OpenedRun, rows: Examples, adapted: bool) -> float:
    return sum(_answers_alike(run, rows, i, adapted) for i in range(len(rows))) / len(rows)


def _answers_alike(run: OpenedRun, rows: Examples, index: int, adapted: bool) -> bool:
    """Tell whether the most probable answer is the row's own last one, to the letter."""
    tokens, mask = rows[index]
    ends = run.tokenizer.end_tokens
    start = int(np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0) == 1)[-1])
    wanted = [int(token) for token in tokens[start:][mask[start:]] if token not in ends]
    options = GenerateOptions(max_tokens=len(wanted) + 8, end_tokens=ends)
    prompt = tokens[:start].tolist()
    found = [t for t in run.session.generate(prompt, options, adapted=adapted) if t not in ends]
    return run.tokenizer.decode(found).strip() == run.tokenizer.decode(wanted).strip()
