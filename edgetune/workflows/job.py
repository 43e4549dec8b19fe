"""What a run has to do: its plan, its rows in their order, and the facts that pin both down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import Session
from edgetune.choice import Choice
from edgetune.data import (
    Batches,
    Dataset,
    MicroBatch,
    Tokenizer,
    evaluation_batches,
    evaluation_rectangles,
)
from edgetune.model import LocalModel
from edgetune.neutral import neutral_batches
from edgetune.pilot import Pilot
from edgetune.planning import Plan
from edgetune.racing import Lengths, lengths
from edgetune.runs import RunFacts, plan_hash
from edgetune.schedule import schedule_of
from edgetune.shares import Weights
from edgetune.speed import Rectangle, Work, rectangles
from edgetune.workflows.after import ANSWER, BEGINNING, After
from edgetune.world import ALONE, World

RACE_SHARE = 0.1
"""Of a run's time, what the evaluations of all races take at most, by the tokens."""

FORWARD = 0.5
"""What a token costs that is evaluated, of one that is trained: without a backward pass, which
computes no gradients of frozen weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A plan, its model and its rows, fitted to the plan's context."""

    plan: Plan
    model: LocalModel
    dataset: Dataset
    batches: Batches
    facts: RunFacts
    world: World = ALONE

    @classmethod
    def of(cls, plan: Plan, dataset: Dataset, model: LocalModel, world: World = ALONE) -> Job:
        """Arrange the rows as planned, or this rank's share of them."""
        batches = batches_of(plan, dataset, world)
        facts = RunFacts(
            plan=plan_hash(plan),
            data=dataset.fingerprint,
            model=model.fingerprint,
            seed=plan.training.seed,
            schedule=schedule_of(plan.training, batches.steps_per_epoch),
            steps_per_epoch=batches.steps_per_epoch,
        )
        return cls(
            plan=plan, model=model, dataset=dataset, batches=batches, facts=facts, world=world
        )

    def opened(self, session: Session) -> Job:
        """Return the job with what its session says of itself."""
        facts = self.facts.computed_by(session.kernels()).computed_on(self.plan)
        return replace(self, facts=facts)

    def evaluation(self) -> Iterator[MicroBatch]:
        """Return this rank's share of the validation rows, which may be none."""
        choice = self.plan.choice
        return evaluation_batches(
            self.dataset.validation,
            context=choice.context,
            micro_batch=choice.micro_batch,
            rank=self.world.rank,
            weights=self.batches.weights,
            world=self.world.size,
        )

    def deal(self, weights: Weights) -> None:
        """Share steps and evaluations from now on as ``weights`` says."""
        self.batches.weights = weights

    def pilot(self) -> Pilot:
        """Return the largest step and the largest evaluation of the run."""
        worst = self.batches.worst_step(self.facts.schedule.steps)
        largest = max(self.evaluation(), key=lambda batch: batch.tokens.size, default=None)
        return Pilot(step=self.batches.step(worst), evaluation=largest)

    def receipt(self) -> dict[str, Any]:
        """Return the account of the rows, padding included."""
        return self.dataset.receipt.with_padding(self.batches.padding).to_json()


def work_of(plan: Plan, dataset: Dataset) -> Work:
    """Return what a run of a plan over fitted rows consists of, as its time is planned."""
    choice, batches = plan.choice, batches_of(plan, dataset)
    schedule = schedule_of(plan.training, batches.steps_per_epoch)
    evaluation = evaluation_rectangles(
        dataset.validation, context=choice.context, micro_batch=choice.micro_batch
    )
    work = Work(
        steps=schedule.steps,
        shortest=schedule.shortest,
        steps_per_epoch=batches.steps_per_epoch,
        evaluations=1 + ceil(schedule.steps / schedule.eval_every),
        saves=1 + ceil(schedule.steps / schedule.save_every),
        epoch=rectangles(batches.rectangles),
        evaluation=rectangles(evaluation),
        pilot=rectangles(batches.worst_rectangles(schedule.steps)),
    )
    return _with_races(work, choice) if plan.training.search == "lr" else work


def with_judging(
    work: Work, after: After, plan: Plan, dataset: Dataset, tokenizer: Tokenizer
) -> Work:
    """Return what a run consists of with its verdict and samples, each answer at its longest."""
    choice, rows = plan.choice, dataset.validation
    if after.verdict:
        batches = neutral_batches(tokenizer, choice.context, choice.micro_batch)
        work = replace(work, neutral=rectangles(batch.tokens.shape for batch in batches))
    asked = (_prompt(rows[index][1]) for index in range(min(after.samples, len(rows))))
    return replace(work, answers=tuple((prompt, ANSWER) for prompt in asked))


def _prompt(learned: NDArray[np.bool_]) -> int:
    """Return the tokens that a sample's answer comes after; plain text goes on from its beginning."""
    before = int(learned.argmax())
    return before if before > 1 else max(2, min(BEGINNING, len(learned) // 2))


def _with_races(work: Work, choice: Choice) -> Work:
    """Return what a run consists of when learning rates are raced before it."""
    found = race_lengths(work)
    count = ceil(race_positions(work, found.races) / choice.tokens)
    each = Rectangle(count * found.races, choice.micro_batch, choice.context)
    return replace(work, race_steps=found.steps * found.races, raced=(each,))


def race_lengths(work: Work, what: str = "lr") -> Lengths:
    """Return how a run is raced for.

    Raises:
        UsageError: if it is too short for two races.
    """
    return lengths(work.shortest, what, most=work.steps)


def race_positions(work: Work, races: int) -> int:
    """Return how many tokens and padding may be evaluated after a race.

    They are a share of the run, or of what it takes at least where it may end early.
    """
    epoch, evaluation = (
        sum(each.count * each.rows * each.width for each in shapes)
        for shapes in (work.epoch, work.evaluation)
    )
    run = (
        epoch * work.steps / max(1, work.steps_per_epoch) + FORWARD * work.evaluations * evaluation
    )
    return int(RACE_SHARE * run * work.shortest / work.steps / FORWARD / races)


def batches_of(plan: Plan, dataset: Dataset, world: World = ALONE) -> Batches:
    """Return the steps of a plan's run over fitted rows, or a rank's share of them."""
    choice = plan.choice
    return Batches(
        dataset.train,
        context=choice.context,
        micro_batch=choice.micro_batch,
        accumulation=choice.accumulation,
        packing=plan.training.packing,
        seed=plan.training.seed,
        rank=world.rank,
        world=world.size,
    )
