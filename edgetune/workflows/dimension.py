"""Intrinsic dimension: how few numbers, moved together, learn a task as well as all weights do.

Li et al. 2018 and Aghajanyan et al. 2020: the same rows and steps train all weights of the blocks, and
random subspaces of them (:mod:`edgetune.methods.intrinsic`). The smallest subspace that lowers the
validation loss by a share (0.9: d90) of what all weights lower it by is the dimension of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any, Final

from edgetune.backend import EvalResult, Session
from edgetune.data import MicroBatch
from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.methods import build
from edgetune.model import open_model
from edgetune.racing import Lengths, Race
from edgetune.workflows.job import Job
from edgetune.workflows.opening import open_session
from edgetune.workflows.over import Over
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.races import Judges, Racer

GRID: Final = (16, 64, 256, 1024, 4096, 16384)
MOST_STEPS: Final = 100_000
"""Steps of each training; a task that takes more is not one to be measured by a dozen trainings."""

SHARE: Final = 0.9
"""What counts as learned: the share of the fall of the loss with all weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionRequest:
    """What was asked for; ``training`` are settings of a training, such as ``steps``."""

    data: Path
    over: Over
    dimensions: tuple[int, ...] = GRID
    seeds: int = 1
    share: float = SHARE
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A subspace: its trained numbers, its validation loss, and that fall against the full one."""

    dimension: int
    parameters: int
    """With the scale of each block."""
    loss: float | None
    """None: it ran away."""
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one seed came to: its order of rows, its subspaces."""

    seed: int
    base: float
    """Loss of the base on the rows that this seed holds out."""
    full: float
    """Loss with all weights trained."""
    points: tuple[Point, ...]
    dimension: int | None
    """The smallest one that reaches the share; None if none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntrinsicDimension:
    """The dimension of a task for a model, and the curves that it was read from."""

    model: str
    rows: int
    steps: int
    share: float
    full_parameters: int
    curves: tuple[Curve, ...]
    dimension: int | None
    """The median over the seeds; None if most of them found none."""


def intrinsic_dimension(
    asked: DimensionRequest, tell: Callable[[int, int], None]
) -> IntrinsicDimension:
    """Train with all weights and in subspaces of each dimension, for every seed.

    ``tell`` is told how many of how many trainings are done.

    Raises:
        UsageError: if the grid, the share or the steps mean nothing, there are no validation rows, or training
            all weights does not lower the loss.
    """
    _refuse(asked)
    jobs = [_Training(asked, seed) for seed in range(asked.seeds)]
    done, every = 0, asked.seeds * (1 + len(asked.dimensions))
    curves = []
    for job in jobs:
        tell(done, every)
        full, base = job.loss("full", {})
        done += 1
        if full is None or full >= base:
            raise UsageError(
                f"Training all weights takes the validation loss from {base:.4f} to "
                f"{'nowhere' if full is None else f'{full:.4f}'}: there is no fall to compare with. "
                "Give more --steps, or other rows."
            )
        points = []
        for dimension in asked.dimensions:
            tell(done, every)
            loss, _ = job.loss("intrinsic", {"dimension": dimension})
            done += 1
            share = 0.0 if loss is None else (base - loss) / (base - full)
            parameters = build("intrinsic", {"dimension": dimension}).parameters(job.shape)
            points.append(Point(dimension=dimension, parameters=parameters, loss=loss, share=share))
        curves.append(
            Curve(
                seed=job.seed, base=base, full=full, points=tuple(points),
                dimension=smallest(points, asked.share),
            )
        )  # fmt: skip
    tell(every, every)
    first = jobs[0]
    return IntrinsicDimension(
        model=first.ref, rows=first.rows, steps=first.steps, share=asked.share,
        full_parameters=build("full", {}).parameters(first.shape), curves=tuple(curves),
        dimension=middle([curve.dimension for curve in curves]),
    )  # fmt: skip


def smallest(points: Sequence[Point], share: float) -> int | None:
    """Return the smallest dimension that reaches a share.

    >>> points = [Point(dimension=d, parameters=d, loss=1.0, share=s)
    ...           for d, s in ((4, 0.5), (8, 0.92), (16, 0.97))]
    >>> smallest(points, 0.9), smallest(points, 0.99)
    (8, None)
    """
    return next((point.dimension for point in points if point.share >= share), None)


def middle(found: Sequence[int | None]) -> int | None:
    """Return the median, the lower of two; what was not found counts as the largest.

    >>> middle([64, None, 16]), middle([None, None, 16])
    (64, None)
    """
    last = max((x for x in found if x is not None), default=0) + 1
    value = median_low([last if x is None else x for x in found])
    return None if value == last else value


class _Training:
    """Trainings of one seed over the same rows, in the number format and context of the full one."""

    def __init__(self, asked: DimensionRequest, seed: int) -> None:
        self.asked, self.seed = asked, seed
        self._same: dict[str, Any] = {"quantization": "none"}
        self.rows = self.steps = 0
        self.ref = ""

    def loss(self, method: str, settings: dict[str, Any]) -> tuple[float | None, float]:
        """Return the validation loss after training, None if it ran away, and the base's."""
        asked = self.asked
        prepared = plan_for(
            PlanRequest(
                model=asked.over.model or "", data=asked.data, device=asked.over.device,
                memory=asked.over.memory, choice={**self._same, **settings, "method": method},
                training={**asked.training, "seed": self.seed}, run=True,
            )
        )  # fmt: skip
        assert prepared.dataset is not None
        plan = prepared.plan
        self._same["context"], self.ref, self.shape = (
            plan.choice.context,
            plan.model.ref,
            plan.shape,
        )
        job = Job.of(plan, prepared.dataset, open_model(plan.model.ref))
        validation = list(job.evaluation())
        if not validation:
            raise UsageError(
                "The dimension of a task is read from validation rows, and there are none. Keep some "
                "with --validation or --validation-data."
            )
        self.rows, self.steps = len(prepared.dataset.train), job.facts.schedule.steps
        length = Lengths(steps=self.steps, races=1, stretch=1.0)
        with closing(open_session(plan, job.model)) as session:
            base = _base_loss(session, validation)
            racer = Racer(job, session, lambda: False, Judges(validation, validation[:1]))
            race = racer.race(Race(rate=plan.training.learning_rate, method=method), length)
            while True:
                try:
                    next(race)
                except StopIteration as ended:
                    return ended.value.loss, base


def _base_loss(session: Session, batches: Sequence[MicroBatch]) -> float:
    found: EvalResult = session.evaluate(batches, adapter=None).settled()
    return found.loss_sum / found.loss_tokens


def _refuse(asked: DimensionRequest) -> None:
    grid = asked.dimensions
    if not asked.over.model:
        raise UsageError("The dimension of a task is one for a model. Give --model REF.")
    if len(grid) < 2 or list(grid) != sorted(set(grid)):
        shown = ",".join(map(str, grid)) or "none"
        raise UsageError(f"--dimensions must be at least two rising numbers; found {shown}.")
    for dimension in grid:
        build("intrinsic", {"dimension": dimension})
    if not 0 < asked.share < 1:
        raise UsageError(f"--share must lie between 0 and 1; found {asked.share:g}.")
    steps, trainings = asked.training.get("steps"), asked.seeds * (1 + len(grid))
    if steps is not None and steps > MOST_STEPS:
        raise UsageError(
            f"--steps must be at most {MOST_STEPS:,}: each of the {trainings} trainings takes so many; "
            f"found {short(steps)}."
        )
