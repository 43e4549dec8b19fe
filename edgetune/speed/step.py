"""The time of an optimizer step: compute against transfer, block by block.

What the parts of a step take is counted by running the network's text (:mod:`edgetune.speed.blocks`);
here counts meet rates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

from edgetune.choice import Choice
from edgetune.methods.base import Method
from edgetune.objectives import Objective
from edgetune.shape import ModelShape
from edgetune.speed.blocks import Works
from edgetune.speed.head import loss_launches, loss_seconds
from edgetune.speed.passes import Passes, Pricing, Spent
from edgetune.speed.rates import Rates
from edgetune.speed.rows import rows_of
from edgetune.speed.update import update_launches, update_seconds
from edgetune.storage import BYTES, blocks_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """Seconds of a whole run by what they are spent on."""

    opening: float
    pilot: float
    """A step, a micro-batch evaluated and a save before the first step."""
    steps: float
    evaluations: float
    saves: float
    judging: float = 0.0
    """The neutral text and the samples after the last step."""
    search: float = 0.0
    """Races of learning rates or methods before the run, at most."""
    loading: float = 0.0
    """Of the opening, what each further session of the process takes again."""

    @property
    def total(self) -> float:
        """The sum."""
        before = self.opening + self.search + self.pilot
        return before + self.steps + self.evaluations + self.saves + self.judging


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """How long an optimizer step takes, and where the figure comes from; 0: not known."""

    seconds_per_step: float
    tokens_per_second: float
    basis: Literal["measured", "profile"] = "profile"
    run: RunEstimate | None = None
    """The whole run, where its rows are known."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """So many micro-batches of ``rows`` by ``width`` tokens."""

    count: int
    rows: int
    width: int

    def of(self, choice: Choice) -> Choice:
        """Return a choice that computes one of them at a time."""
        return replace(choice, micro_batch=self.rows, context=self.width)


class TimeModel:
    """Times choices of one method on one model and one device."""

    def __init__(
        self,
        shape: ModelShape,
        method: Method,
        rates: Rates,
        objective: Objective | None = None,
        documents: float | None = None,
    ) -> None:
        """Prepare for many choices; ``documents`` as in :func:`edgetune.speed.rows.rows_of`."""
        self.shape = shape
        self.objective = objective
        self.rates = rates
        self.trained = method.parameters(shape)
        self.learns_head = method.trained_head(shape) is not None
        self._documents = documents
        self._bytes = cache(partial(blocks_bytes, shape))
        self._works = Works(shape, method)
        self._updating = cache(partial(update_launches, self._works.sizes, rates))
        self._priced: dict[tuple[object, ...], Passes] = {}

    def estimate(self, choice: Choice) -> TimeEstimate:
        """Return the time of an optimizer step; zero if the device's rates are not known."""
        if not self.rates.known:
            return TimeEstimate(seconds_per_step=0.0, tokens_per_second=0.0)
        seconds = self.seconds(choice)
        tokens = choice.tokens * choice.accumulation
        return TimeEstimate(
            seconds_per_step=seconds, tokens_per_second=tokens / seconds, basis=self.rates.basis
        )

    def seconds(self, choice: Choice) -> float:
        """Return the seconds of an optimizer step on a device whose rates are known."""
        return choice.accumulation * self.micro_batch(choice) + self.update(choice)

    def step_of(self, choice: Choice, micro_batches: Iterable[Rectangle]) -> float:
        """Return the seconds of a step of these micro-batches, whatever the choice says of them."""
        passes = sum(each.count * self.micro_batch(each.of(choice)) for each in micro_batches)
        return passes + self.update(choice)

    # parts of it

    def micro_batch(self, choice: Choice) -> float:
        """Return the seconds of a micro-batch's loss and gradients."""
        spent = self._training(choice)
        work = spent.seconds + self.head(choice) + self._offload(choice)
        seconds = self._with_issuing(choice, work, spent.launches)
        return seconds if self.objective is None else seconds + self._scored(choice, self.objective)

    def update(self, choice: Choice) -> float:
        """Return the seconds of what is done once a step: the update, and what follows from it."""
        work = update_seconds(self.trained, self.rates, choice.optimizer)
        updated = self._with_issuing(choice, work, self._updating(choice.optimizer))
        return updated + self.state(choice)

    def state(self, choice: Choice) -> float:
        """Return the seconds of what is computed once for each state of what is trained."""
        state = self._passes(choice).state
        return self._with_issuing(choice, state.seconds, state.launches)

    def validation(self, choice: Choice) -> float:
        """Return the seconds in which a micro-batch is evaluated, by the base too if need be."""
        passes = 1 if self.objective is None else _passes(self.objective)
        return self.evaluation(choice) * passes

    def evaluation(self, choice: Choice) -> float:
        """Return the seconds of one pass without gradients over a micro-batch, with its loss."""
        passes = self._passes(choice)
        spent = passes.forward + passes.ends(choice.loss_chunk, graded=False)
        launches = spent.launches + self._of_loss(choice, trained=False) / 2
        return self._with_issuing(choice, spent.seconds + self._logits(choice), launches)

    def launches(self, choice: Choice) -> float:
        """Return the operations of a step of one micro-batch."""
        passes = self._passes(choice)
        return (
            self._training(choice).launches
            + self._updating(choice.optimizer)
            + passes.state.launches
        )

    def blocks(self, choice: Choice) -> float:
        """Return the seconds of all blocks' passes for a micro-batch."""
        return self._passes(choice).training(choice.checkpointing.layers).seconds

    def touched(self, choice: Choice) -> float:
        """Return the seconds in which all blocks work element by element, unpacking included."""
        return self._passes(choice).training(choice.checkpointing.layers).touched

    def head(self, choice: Choice) -> float:
        """Return the seconds of the loss: logits, and the gradients of states and a trained head."""
        return loss_seconds(self.shape, self.rates, choice, trained=self.learns_head)

    def _logits(self, choice: Choice) -> float:
        """Return the seconds of the loss without gradients."""
        return loss_seconds(self.shape, self.rates, choice, trained=self.learns_head, graded=False)

    def share(self, choice: Choice) -> float:
        """Return what steps like it took of the seconds that the rates predict."""
        return self.rates.share(choice, self.shape.hidden_size)

    def _scored(self, choice: Choice, objective: Objective) -> float:
        """Return the seconds of scoring answers: the head once more, and passes of their own.

        They are the base's, and where an objective asks for mismatched answers, those of policy and
        base over them: as many tokens again.
        """
        return self._logits(choice) + (_passes(objective) - 1) * self.evaluation(choice)

    def _of_loss(self, choice: Choice, *, trained: bool) -> float:
        """Return the operations of the loss."""
        return loss_launches(self.shape, choice, trained=trained, fused=self.rates.fused)

    def _with_issuing(self, choice: Choice, work: float, launches: float) -> float:
        """Return the seconds of work that is issued in so many operations."""
        issued = launches * self.rates.operation
        seconds = max(work, issued) if self.rates.asynchronous else work + issued
        return self.share(choice) * seconds

    def _training(self, choice: Choice) -> Spent:
        """Return all passes of a micro-batch; of the loss only its operations."""
        passes = self._passes(choice)
        blocks = passes.training(choice.checkpointing.layers)
        loss = Spent(launches=self._of_loss(choice, trained=self.learns_head))
        return blocks + passes.ends(choice.loss_chunk, graded=True) + loss

    def _passes(self, choice: Choice) -> Passes:
        """Return the passes of choices that compute in the same way; they are priced once."""
        way = (
            choice.micro_batch, choice.context, choice.tile, choice.quantization,
            choice.compute_dtype, choice.placement,
        )  # fmt: skip
        if way not in self._priced:
            rows = rows_of(choice, self.shape, self.rates, self._documents)
            streamed = choice.placement != "resident"
            self._priced[way] = Passes(
                self._works,
                Pricing(choice, rows, self.rates),
                tiles=choice.tiles,
                transfer=self._transfer(choice) if streamed else 0.0,
                slower=self.rates.beside_copies if streamed else 1.0,
            )
        return self._priced[way]

    def _transfer(self, choice: Choice) -> float:
        """Return the seconds in which a block's weights arrive."""
        block = self._bytes(choice.quantization) / self.shape.layers
        return block / self._bandwidth(choice.placement)

    def _offload(self, choice: Choice) -> float:
        kept = choice.checkpointing
        if kept.offload == "none":
            return 0.0
        entry = choice.tokens * self.shape.stream_size * BYTES[choice.compute_dtype]
        saved = max(0, kept.layers - self._works.first)
        return 2 * saved * entry / self._bandwidth(kept.offload)

    def _bandwidth(self, place: Literal["none", "resident", "host", "disk"]) -> float:
        return self.rates.disk if place == "disk" else self.rates.link


def _passes(objective: Objective) -> int:
    """Return how many passes without gradients score a micro-batch, the policy's one of them."""
    models = 2 if objective.needs_reference else 1
    return models * (2 if objective.needs_mismatched else 1)
