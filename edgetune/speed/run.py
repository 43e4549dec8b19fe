"""The time of a whole run: opening, steps, evaluations and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edgetune.choice import Choice
from edgetune.shape import ModelShape
from edgetune.speed.rates import Rates
from edgetune.speed.step import Rectangle, RunEstimate, TimeModel
from edgetune.storage import (
    FILE_FORMAT,
    FLOAT32_BYTES,
    OPTIMIZER_BYTES,
    blocks_bytes,
    outer_bytes,
)

SAVE = 0.05
"""Seconds of a checkpoint besides its bytes: files made, flushed and renamed."""

FLUSHED = 0.3
"""Share of a disk's reading rate at which files are written and flushed."""

JUDGING_SHARE, LEAST_JUDGING, MOST_JUDGING = 0.05, 10.0, 120.0
"""What the neutral text and the samples may take, each: a share of the steps, and seconds."""

QUANTIZE_COST = 2.0
"""Time of turning a weight into a code against turning it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run does besides opening the model.

    ``epoch`` and ``evaluation`` are the micro-batches of one pass over the training and the
    validation rows, ``pilot`` those of the step that is tried before the first one. Of the steps the first ``shortest`` are taken in any case: an early end may come
    after them. ``race_steps`` counts the steps of all races of learning rates before it, and
    ``raced`` are the micro-batches that are evaluated after them. When the run is trained, base and
    tuned model read ``neutral`` and give ``answers``: the tokens of each prompt and of its answer.
    """

    steps: int
    shortest: int
    steps_per_epoch: int
    evaluations: int
    saves: int
    epoch: tuple[Rectangle, ...]
    evaluation: tuple[Rectangle, ...]
    pilot: tuple[Rectangle, ...]
    race_steps: int = 0
    raced: tuple[Rectangle, ...] = ()
    neutral: tuple[Rectangle, ...] = ()
    answers: tuple[tuple[int, int], ...] = ()


def run_estimate(time: TimeModel, choice: Choice, work: Work) -> RunEstimate:
    """Return the seconds of a run on a device whose rates are known."""
    rates, shape = time.rates, time.shape
    epoch = sum(
        each.count * time.micro_batch(each.of(choice)) for each in work.epoch
    ) + work.steps_per_epoch * time.update(choice)
    evaluation = _evaluated(time, choice, work.evaluation)
    state = time.trained * (FLOAT32_BYTES + OPTIMIZER_BYTES[choice.optimizer])
    save = SAVE + state / (FLUSHED * rates.disk)
    raced = _evaluated(time, choice, work.raced)
    loading = _loading(shape, choice, rates)
    steps = epoch * work.steps / max(1, work.steps_per_epoch)
    return RunEstimate(
        opening=rates.opening + loading,
        loading=loading,
        pilot=_tried(time, choice, work) + save,
        steps=steps,
        evaluations=work.evaluations * evaluation,
        saves=work.saves * save,
        judging=_judging(time, choice, work, judging_limit(steps)),
        search=epoch * work.race_steps / max(1, work.steps_per_epoch) + raced,
    )


def judging_limit(steps: float) -> float:
    """Return the seconds after which a run that stepped for ``steps`` ends its judging.

    The neutral text and the samples may take so long each, and what was begun is finished.
    """
    return min(MOST_JUDGING, max(LEAST_JUDGING, JUDGING_SHARE * steps))


def rectangles(shapes: Iterable[tuple[int, int]]) -> tuple[Rectangle, ...]:
    """Return equal (rows, width) pairs together, in their order."""
    counts: dict[tuple[int, int], int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    return tuple(Rectangle(count, *shape) for shape, count in sorted(counts.items()))


def _evaluated(time: TimeModel, choice: Choice, micro_batches: Sequence[Rectangle]) -> float:
    """Return the seconds of evaluating micro-batches, one state of what is trained on all of them."""
    if not micro_batches:
        return 0.0
    passes = sum(each.count * time.validation(each.of(choice)) for each in micro_batches)
    return passes + time.state(choice)


def _tried(time: TimeModel, choice: Choice, work: Work) -> float:
    """Return the seconds of the pilot's step, and of evaluating the largest micro-batch."""
    largest = max(work.evaluation or work.pilot, key=lambda each: each.rows * each.width)
    return time.step_of(choice, work.pilot) + _evaluated(time, choice, (replace(largest, count=1),))


def _judging(time: TimeModel, choice: Choice, work: Work, limit: float) -> float:
    """Return the seconds in which base and tuned model read the neutral text and answer prompts."""
    neutral = [(each.count, 2 * time.evaluation(each.of(choice))) for each in work.neutral]
    reads = [(1, time.evaluation(Rectangle(1, 2, asked).of(choice))) for asked, _ in work.answers]
    token = time.evaluation(Rectangle(1, 1, 2).of(choice))  # the next one of both
    answers = [*reads, (sum(answer for _, answer in work.answers), token)]
    return _within(limit, neutral) + _within(limit, answers)


def _within(limit: float, parts: Sequence[tuple[int, float]]) -> float:
    """Return the seconds of ``(count, seconds)`` parts, of which none begins after the limit."""
    total = sum(count * seconds for count, seconds in parts)
    return min(total, limit + max((seconds for _, seconds in parts), default=0.0))


def _loading(shape: ModelShape, choice: Choice, rates: Rates) -> float:
    """Return the seconds of reading the base and, where it is quantized, of turning it into codes."""
    form = choice.quantization if choice.quantization == FILE_FORMAT else "none"
    read = (blocks_bytes(shape, form) + outer_bytes(shape, form)) / rates.disk
    if choice.quantization in {"none", FILE_FORMAT}:
        return read
    return read + QUANTIZE_COST * shape.linear_parameters / rates.dequantize
