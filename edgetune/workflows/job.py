"""What a run has to do: its plan, its rows in their order, and the facts that pin both down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from edgetune.data import (
    Batches,
    Dataset,
    MicroBatch,
    evaluation_batches,
    evaluation_rectangles,
)
from edgetune.model import LocalModel
from edgetune.pilot import Pilot
from edgetune.planning import Plan
from edgetune.runs import RunFacts, plan_hash
from edgetune.schedule import schedule_of
from edgetune.speed import Work, rectangles
from edgetune.world import ALONE, World


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

    def evaluation(self) -> Iterator[MicroBatch]:
        """Return this rank's share of the validation rows, which may be none."""
        choice = self.plan.choice
        return evaluation_batches(
            self.dataset.validation,
            context=choice.context,
            micro_batch=choice.micro_batch,
            rank=self.world.rank,
            world=self.world.size,
        )

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
    return Work(
        steps=schedule.steps,
        steps_per_epoch=batches.steps_per_epoch,
        evaluations=1 + ceil(schedule.steps / schedule.eval_every),
        saves=1 + ceil(schedule.steps / schedule.save_every),
        epoch=rectangles(batches.rectangles),
        evaluation=rectangles(evaluation),
    )


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
