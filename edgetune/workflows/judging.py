"""The end of a run: what it learned and forgot, and how it answers held-out rows now.

All of it is computed in the session that trained, within the plan's evaluation and generation, and
within a share of the run's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Any, Final

from edgetune.backend import Session
from edgetune.data import Tokenizer, load_tokenizer
from edgetune.errors import EdgetuneError
from edgetune.events import Judged, RunState
from edgetune.neutral import drift, neutral_batches
from edgetune.planning import Plan
from edgetune.runs import RunFolder, checkpoint_name, load_checkpoint
from edgetune.settings.spec import to_plain
from edgetune.speed import judging_limit
from edgetune.verdict import Answered, Compared, Facts, Verdict, judged
from edgetune.workflows.after import After
from edgetune.workflows.job import Job
from edgetune.workflows.samples import Samples, answered

VERDICT: Final = "verdict.json"
SAMPLES: Final = "samples.json"


@dataclass(slots=True)
class Judge:
    """Looks at a trained run; what cannot be measured is said in ``notes`` and stops nothing."""

    job: Job
    folder: RunFolder
    session: Session
    now: RunState
    stop: Callable[[], bool]
    step: int = field(default=0, init=False)
    """The step whose adapter is looked at."""
    notes: list[str] = field(default_factory=list)

    def judge(self, after: After, source: Path | None) -> Iterator[Judged]:
        """Write the verdict and the samples that are asked for, and tell of the verdict.

        ``source`` is the checkpoint that is handed over, None where none is better than the base.

        Raises:
            OSError: if they cannot be written.
            EdgetuneError: if checkpoint or tokenizer cannot be read any more.
        """
        if not after.verdict and not after.samples:
            return
        self._take(source)
        model = self.job.model
        tokenizer = load_tokenizer(model.folder, model.shape.vocabulary)
        answers: Answered | None = None
        if after.samples and len(self.job.dataset.validation):
            samples = Samples(self.job, self.session, tokenizer, self.stop, self._seconds())
            found = {"version": 1, "step": self.step, **samples.answer(after.samples)}
            self.folder.write(SAMPLES, found)
            answers = answered(found["samples"])
        if after.verdict:
            yield self._verdict(tokenizer, answers)

    @property
    def plan(self) -> Plan:
        """The run's plan."""
        return self.job.plan

    def _take(self, source: Path | None) -> None:
        """Take the session to a checkpoint, if it is not there."""
        self.step = self.now.step
        if source is not None and source.name != checkpoint_name(self.step):
            found = load_checkpoint(source, self.plan)
            self.step = found.state.progress.step
            self.session.restore(found.adapter)

    def _verdict(self, tokenizer: Tokenizer, answers: Answered | None) -> Judged:
        begun = time.monotonic()
        neutral, whole = self._neutral(tokenizer)
        facts = self._facts(neutral, answers)
        verdict, seconds = judged(facts), time.monotonic() - begun
        record = self._record(facts, verdict, seconds, whole=whole)
        self.folder.write(VERDICT, record)
        return Judged(step=self.now.step, verdict=verdict, record=record)

    def _neutral(self, tokenizer: Tokenizer) -> tuple[Compared | None, bool]:
        """Return the losses on the neutral text, and whether all of it was read."""
        rows = min(filter(None, (self.now.rows, self.plan.choice.micro_batch)))
        batches = neutral_batches(tokenizer, self.plan.choice.context, rows)
        if self.stop():
            self.notes.append("Stopped before the neutral text was read: what it forgot is open.")
            return None, False
        try:
            found = drift(self.session, batches, seconds=self._seconds())
        except (EdgetuneError, MemoryError) as error:
            self.notes.append(f"What it forgot could not be measured: {error}")
            return None, False
        if not found.whole:
            read = f"the first {found.tokens:,} tokens of the neutral text"
            self.notes.append(f"Only {read} were read, because time was up.")
        compared = Compared(base_loss=found.base_loss, loss=found.loss, count=found.tokens)
        return compared, found.whole

    def _seconds(self) -> float:
        return judging_limit(sum(line["seconds"] for line in self.folder.steps()))

    def _facts(self, neutral: Compared | None, answers: Answered | None) -> Facts:
        now, dataset = self.now, self.job.dataset
        evaluations = [(line["step"], line["loss"]) for line in self.folder.evaluations()]
        trained = tuple(one for one in evaluations if one[0] > 0)
        held_out = None
        if now.base_loss is not None and trained:
            loss, count = dict(trained).get(self.step, trained[-1][1]), len(dataset.validation)
            held_out = Compared(base_loss=now.base_loss, loss=loss, count=count)
        before = max((step for step, _ in trained if step < self.step), default=0)
        losses = [one["loss"] for one in self.folder.steps() if before < one["step"] <= self.step]
        return Facts(
            held_out=held_out,
            neutral=neutral,
            evaluations=trained,
            steps=self.now.step,
            training=losses[-50:],
            trained=len(dataset.train),
            perplexities=self.plan.objective is None,
            answers=answers,
        )

    def _record(
        self, facts: Facts, verdict: Verdict, seconds: float, *, whole: bool
    ) -> dict[str, Any]:
        """Return what ``verdict.json`` says."""
        neutral = _figures(facts.neutral, perplexities=True)
        if neutral is not None:
            neutral = {**neutral, "whole": whole}
        return {
            "version": 1,
            **to_plain(verdict),
            "step": self.step,
            "held_out": _figures(facts.held_out, perplexities=facts.perplexities),
            "neutral": neutral,
            "answers": to_plain(facts.answers),
            "seconds": round(seconds, 3),
            "notes": list(self.notes),
        }


def _figures(compared: Compared | None, *, perplexities: bool) -> dict[str, Any] | None:
    if compared is None:
        return None
    found: dict[str, Any] = to_plain(compared)
    if perplexities:
        found["base_perplexity"] = exp(min(compared.base_loss, 700.0))
        found["perplexity"] = exp(min(compared.loss, 700.0))
    return found
