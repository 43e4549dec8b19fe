"""What the ranks of a world do together: a step or none of it, and sums over what each has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from edgetune.backend import DeviceOutOfMemoryError, EvalResult
from edgetune.data.answers import Scoring
from edgetune.data.batch import MicroBatch
from edgetune.errors import EdgetuneError, LostRankError
from edgetune.objectives import Rewards
from edgetune.world import World, summed

T = TypeVar("T")

_DONE: Final = 0.0
_NO_MEMORY: Final = 1.0
_FAILED: Final = 2.0
"""And more: the exit code of what failed is added."""


@contextmanager
def together(world: World) -> Iterator[None]:
    """Do something on every rank, or on none: what fails on one is raised on all.

    Raises:
        DeviceOutOfMemoryError: if memory ran out on another rank.
        LostRankError: if something else went wrong on another rank, which ends with it; its exit
            code is that of the other rank.
    """
    try:
        yield
    except LostRankError:
        raise
    except Exception as error:
        code = error.exit_code if isinstance(error, EdgetuneError) else EdgetuneError.exit_code
        out_of_memory = isinstance(error, DeviceOutOfMemoryError)
        with suppress(LostRankError):  # this is what is told
            world.gather((_NO_MEMORY if out_of_memory else _FAILED + code,))
        raise
    answers = [answer for (answer,) in world.gather((_DONE,))]
    for rank, answer in enumerate(answers):
        if answer >= _FAILED:
            lost = LostRankError(f"Rank {rank} failed; what it printed says why.")
            lost.exit_code = int(answer - _FAILED)
            raise lost
    if _NO_MEMORY in answers:
        raise DeviceOutOfMemoryError(f"memory ran out on rank {answers.index(_NO_MEMORY)}")


@contextmanager
def alike(world: World) -> Iterator[None]:
    """Do what every other rank does by now: where memory runs out, this one leaves the world.

    To try again would ask the others for what they do not expect any more.

    Raises:
        LostRankError: if this one cannot.
    """
    try:
        yield
    except DeviceOutOfMemoryError as error:
        if world.size == 1:
            raise
        raise LostRankError(
            f"Memory ran out on rank {world.rank} after the gradients were exchanged, in a step that "
            f"the other ranks take: {error}."
        ) from None


def in_halves(
    batches: Sequence[MicroBatch],
    accumulate: Callable[[MicroBatch], float],
    set_aside: Callable[[], T],
    add_back: Callable[[T], None],
    depth: int = 0,
) -> float:
    """Add micro-batches up in the order that belongs to the run; see :mod:`edgetune.shares`.

    ``accumulate`` adds the gradients of one to a sum and returns its loss; ``set_aside`` takes the
    sum away, so that it begins anew, and ``add_back`` adds what was taken. Returns the summed loss.
    """
    inner = [batch for batch in batches if len(batch.halves) > depth]
    if not inner:
        return sum(map(accumulate, batches))
    first, second = ([b for b in inner if b.halves[depth] == half] for half in (0, 1))
    if not (first and second):  # nothing added to something changes no bit of it
        return in_halves(inner, accumulate, set_aside, add_back, depth + 1)
    loss = in_halves(first, accumulate, set_aside, add_back, depth + 1)
    held = set_aside()
    loss += in_halves(second, accumulate, set_aside, add_back, depth + 1)
    add_back(held)
    return loss


def step_sums(
    world: World, loss: float, loss_tokens: int, scoring: Scoring | None
) -> tuple[float, dict[str, float]]:
    """Return the mean loss of a step and its further means, from this rank's sums.

    ``loss_tokens`` counts the terms of the whole step.
    """
    rewards = None if scoring is None else scoring.total.rewards
    terms = 0 if scoring is None else scoring.total.terms
    total = evaluated(world, EvalResult(loss_sum=loss, loss_tokens=terms, rewards=rewards))
    return total.loss_sum / loss_tokens, total.metrics


def evaluated(world: World, own: EvalResult) -> EvalResult:
    """Return the sums over what all ranks have evaluated, from this rank's.

    The reference point of an objective is the same on all of them.
    """
    if world.size == 1:
        return own
    rewards = own.rewards or Rewards()
    loss, tokens, correct, rows, *counts = summed(
        world,
        (
            own.loss_sum, own.loss_tokens, own.correct, own.rows, own.rewards is not None,
            rewards.chosen_count, rewards.rejected_count, rewards.right, rewards.chosen,
            rewards.rejected,
        ),
    )  # fmt: skip
    scored, chosen_count, rejected_count, right, chosen, rejected = counts
    return EvalResult(
        loss_sum=loss,
        loss_tokens=int(tokens),
        correct=int(correct),
        rows=int(rows),
        rewards=Rewards(
            chosen=chosen,
            chosen_count=int(chosen_count),
            rejected=rejected,
            rejected_count=int(rejected_count),
            right=int(right),
            kl=rewards.kl,
        )
        if scored
        else None,
    )
