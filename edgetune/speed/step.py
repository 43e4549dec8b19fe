"""The time of an optimizer step: compute against transfer, block by block.

T tokens of a micro-batch, S tokens of a row, D hidden size, F FFN width, N weights of a block's
projections, V vocabulary. A product of T tokens with N weights costs 2 T N operations. Of experts a
token is multiplied with those that it chose, but all that any token chose are read and unpacked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import ceil
from typing import Literal

from edgetune.choice import Choice
from edgetune.methods.base import Method
from edgetune.objectives import Objective
from edgetune.settings.spec import PAGED
from edgetune.shape import BlockShape, Experts, ModelShape
from edgetune.speed.ops import Operations
from edgetune.speed.rates import Rates
from edgetune.storage import (
    BYTES,
    FILE_FORMAT,
    OPTIMIZER_BYTES,
    blocks_bytes,
    vocabulary_bytes,
)

OPTIMIZER_COST = {"adamw": 1.0, "adamw-8bit": 1.5, PAGED: 1.5}
"""Time of an update against plain AdamW's, copies not counted."""

DEQUANTIZE_COST = {"int8": 0.5, "q8": 0.5, "nf4": 1.0, "q4": 1.0, "mxfp4": 1.0, "nvfp4": 1.0,
                   "gguf": 2.0}  # fmt: skip
"""Time of a weight against one of four bits: the codes of eight bits need no lookup."""

ATTENTION_PASSES = 3.5
"""Products of attention in both passes against those of the forward pass."""

EXPERT_MOVES = 5
"""Numbers moved for each of a token's states that an expert reads and makes."""

LOGITS_AND_STATES = 4
"""Operations a weight of the head and a token: two products, that of a trained head not counted."""

LOGIT_PASSES = 10
"""Times that the loss reads or writes the logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """Seconds of a whole run by what they are spent on."""

    opening: float
    pilot: float
    """A step, an evaluation and a save before the first step."""
    steps: float
    evaluations: float
    saves: float
    search: float = 0.0
    """Races of learning rates or methods before the run, at most."""
    loading: float = 0.0
    """Of the opening, what each further session of the process takes again."""

    @property
    def total(self) -> float:
        """The sum."""
        before = self.opening + self.search + self.pilot
        return before + self.steps + self.evaluations + self.saves


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


@dataclass(frozen=True, slots=True)
class Work:
    """What the time of a block depends on: its weights, and numbers a token.

    ``active`` weights are those that a token is multiplied with. ``queries`` of attention, those
    that are ``moved`` element by element, and ``products`` of numbers that a mixer without
    attention makes. ``experts`` are there in place of an MLP.
    """

    weights: int
    active: int
    queries: int
    moved: int
    experts: Experts | None = None
    products: int = 0
    keys: int = 0
    """Weights that keys and values are made with, of a block that attends."""

    @classmethod
    def of(cls, block: BlockShape, hidden: int) -> Work:
        """Return the work of a block.

        Two norms and two residuals, the rotation of queries and keys, the activation are read and
        written, and what is convolved, once for each tap.
        """
        moved = 14 * hidden + 6 * (block.queries + block.keys)
        experts, active, mixer, products = (
            block.experts,
            block.active_parameters,
            block.recurrent,
            0,
        )
        if mixer is not None:
            moved += 2 * (mixer.taps + 2) * mixer.channels
            products = mixer.products
        moved += (
            4 * block.ffn_size
            if experts is None
            else experts.chosen * (4 * experts.size + EXPERT_MOVES * hidden)
        )
        made = (x for x in block.linears if x.role in {"k", "v", "qkv", "kv_a", "kv_b"})
        keys = sum(x.inputs * x.outputs for x in made)
        return cls(block.linear_parameters, active, block.queries, moved, experts, products, keys)

    def used(self, tokens: int) -> float:
        """Return the weights that any of so many tokens is multiplied with, on average.

        An expert is left out by all with the chance that each token leaves it out.
        """
        if self.experts is None:
            return self.weights
        share = self.experts.chosen / self.experts.number
        one = (self.weights - self.active) / (self.experts.number - self.experts.chosen or 1)
        apart = self.weights - one * self.experts.number
        return apart + one * self.experts.number * (1 - (1 - share) ** tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Seconds of one block's forward and backward pass, and of bringing its weights."""

    forward: float
    backward: float
    transfer: float
    keys: float = 0.0
    """Of making the keys and values of all tiles before the way back."""

    def run(self, *seconds: float) -> float:
        """Return the time of computing while the next block's weights are on their way."""
        return max(sum(seconds), self.transfer)


class TimeModel:
    """Times choices of one method on one model and one device."""

    def __init__(
        self,
        shape: ModelShape,
        method: Method,
        rates: Rates,
        objective: Objective | None = None,
    ) -> None:
        """Prepare for many choices."""
        self.shape = shape
        self.objective = objective
        self.rates = rates
        self.trained = method.parameters(shape)
        outside = {shape.embedding_tensor, shape.head_tensor}
        tables = (x.size for x in method.tensors(shape) if x.trained and x.name in outside)
        self.inside = method.multiplied(shape) - sum(tables)
        self.learns_head = method.trained_head(shape) is not None
        self.first = method.first_layer(shape)
        self._blocks = cache(partial(blocks_bytes, shape))
        self._operations = Operations(shape, method)
        self._work = [Work.of(block, shape.hidden_size) for block in shape.blocks]
        self._counted = cache(self._count)

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

    def micro_batch(self, choice: Choice) -> float:
        """Return the seconds of a micro-batch's loss and gradients."""
        work = self.blocks(choice) + self.head(choice) + self._offload(choice)
        seconds = self._with_issuing(choice, work, self._operations.micro_batch(choice))
        return seconds if self.objective is None else seconds + self._scored(choice, self.objective)

    def _scored(self, choice: Choice, objective: Objective) -> float:
        """Return the seconds of scoring answers: the head once more, and passes of their own.

        They are the base's, and where an objective asks for mismatched answers, those of policy and
        base over them: as many tokens again.
        """
        return self._head(choice, LOGITS_AND_STATES) / 2 + (
            _passes(objective) - 1
        ) * self.evaluation(choice)

    def update(self, choice: Choice) -> float:
        """Return the seconds of the optimizer's update."""
        work = OPTIMIZER_COST[choice.optimizer] * self.trained / self.rates.optimizer
        if choice.optimizer == PAGED:  # read from the host's memory and written there
            work += 2 * OPTIMIZER_BYTES[PAGED] * self.trained / self.rates.link
        return self._with_issuing(choice, work, self._operations.update(choice))

    def validation(self, choice: Choice) -> float:
        """Return the seconds in which a micro-batch is evaluated, by the base too if need be."""
        passes = 1 if self.objective is None else _passes(self.objective)
        return self.evaluation(choice) * passes

    def evaluation(self, choice: Choice) -> float:
        """Return the seconds of one pass without gradients over a micro-batch, with its loss."""
        passes = ((count, self._pass(choice, work)) for work, count in self._counted().items())
        blocks = sum(count * block.run(block.forward) for count, block in passes)
        work = blocks + self._head(choice, LOGITS_AND_STATES) / 2
        return self._with_issuing(choice, work, self._operations.evaluation(choice))

    def _with_issuing(self, choice: Choice, work: float, operations: float) -> float:
        """Return the seconds of work that is issued in so many operations."""
        issued = operations * self.rates.operation
        seconds = max(work, issued) if self.rates.asynchronous else work + issued
        return self.share(choice) * seconds

    def share(self, choice: Choice) -> float:
        """Return what steps like it took of the seconds that the rates predict."""
        return self.rates.share(choice, self.shape.hidden_size)

    def blocks(self, choice: Choice) -> float:
        """Return the seconds of all blocks' passes for a micro-batch."""
        again = max(self.first, choice.checkpointing.layers)
        adapted, kept = self._counted(self.first), self._counted(again)
        seconds = 0.0
        for work, count in self._counted().items():
            block = self._pass(choice, work)
            seconds += (
                count * block.run(block.forward)
                + kept[work] * block.run(block.backward)
                + (adapted[work] - kept[work])
                * block.run(block.keys, block.forward, block.backward)
            )
        return seconds

    def _count(self, first: int = 0) -> Counter[Work]:
        """Return how many blocks of each kind there are from one on."""
        return Counter(self._work[first:])

    def _pass(self, choice: Choice, work: Work) -> Pass:
        rates, tokens = self.rates, choice.tokens
        product, width = rates.product(choice.compute_dtype), BYTES[choice.compute_dtype]
        low_rank = self.inside / max(1, self.shape.layers - self.first)
        used = work.used(tokens)
        read = choice.tiles * used * width / rates.pointwise
        frozen = max(2 * tokens * work.active / product, read)
        attended = 2 * tokens * choice.context * work.queries
        attention = attended / rates.attention(choice.compute_dtype)
        added = 2 * tokens * low_rank / product
        mixed = 2 * tokens * work.products / rates.product("float32")
        beside = rates.beside_copies if choice.placement != "resident" else 1.0
        touched = self._touched(choice, work)
        return Pass(
            forward=beside * (frozen + attention + mixed + touched[0] + added),
            backward=beside
            * (frozen + (ATTENTION_PASSES - 1) * (attention + mixed) + touched[1] + 2 * added),
            transfer=self._transfer(choice),
            keys=0.0 if choice.tiles == 1 else beside * frozen * work.keys / work.active,
        )

    def touched(self, choice: Choice) -> float:
        """Return the seconds in which all blocks work element by element, unpacking included."""
        adapted, seconds = self._counted(self.first), 0.0
        for work, count in self._counted().items():
            forward, backward = self._touched(choice, work)
            seconds += count * forward + adapted[work] * backward
        return seconds

    def _touched(self, choice: Choice, work: Work) -> tuple[float, float]:
        """Return a block's seconds of it, forward and backward."""
        rates = self.rates
        moved = choice.tokens * BYTES[choice.compute_dtype] * work.moved / rates.pointwise
        dense = choice.tiles * self._dense(choice) * work.used(choice.tokens // choice.tiles)
        factor, counted = rates.block_factor(choice), self._operations
        forward = moved + dense + rates.sharing * counted.forward(choice)
        backward = 2 * moved + dense + rates.sharing * counted.backward(choice)
        return factor * forward, factor * backward

    def _dense(self, choice: Choice) -> float:
        """Return the seconds in which a stored weight becomes a number to compute with."""
        if choice.quantization != "none":
            return DEQUANTIZE_COST[choice.quantization] / self.rates.dequantize
        if BYTES[choice.compute_dtype] == BYTES[self.shape.dtype]:
            return 0.0
        return 1 / self.rates.convert

    def _transfer(self, choice: Choice) -> float:
        if choice.placement == "resident":
            return 0.0
        block = self._blocks(choice.quantization) / self.shape.layers
        return block / self._bandwidth(choice.placement)

    def head(self, choice: Choice) -> float:
        """Return the seconds of the loss: logits, their gradient, those of states and trained head."""
        return self._head(choice, LOGITS_AND_STATES + 2 * self.learns_head)

    def _head(self, choice: Choice, operations: int) -> float:
        """Return the seconds of the loss, with so many operations a weight and token in products."""
        rates, tokens, shape = self.rates, choice.tokens, self.shape
        matrix = shape.vocabulary * shape.hidden_size
        products = operations * tokens * matrix / rates.product(choice.compute_dtype)
        logits = 4 * tokens * shape.vocabulary * LOGIT_PASSES / rates.pointwise
        chunks = ceil(tokens / choice.loss_chunk)
        if choice.quantization == FILE_FORMAT:
            read = matrix * DEQUANTIZE_COST[FILE_FORMAT] / rates.dequantize
        elif BYTES[choice.compute_dtype] != BYTES[shape.dtype]:
            read = matrix / rates.convert
        else:
            read = matrix * BYTES[shape.dtype] / rates.pointwise
        stored = vocabulary_bytes(shape, choice.quantization, "head")
        brought = chunks * stored * (choice.head == "disk") / rates.disk
        table = vocabulary_bytes(shape, choice.quantization, "embedding")
        looked_up = tokens * table / shape.vocabulary / rates.disk
        computed = rates.head_factor(choice) * (products + logits + 2 * chunks * read)
        return computed + 2 * brought + looked_up * (choice.embedding == "disk")

    def _offload(self, choice: Choice) -> float:
        kept = choice.checkpointing
        if kept.offload == "none":
            return 0.0
        entry = choice.tokens * self.shape.hidden_size * BYTES[choice.compute_dtype]
        saved = max(0, kept.layers - self.first)
        return 2 * saved * entry / self._bandwidth(kept.offload)

    def _bandwidth(self, place: Literal["none", "resident", "host", "disk"]) -> float:
        return self.rates.disk if place == "disk" else self.rates.link


def _passes(objective: Objective) -> int:
    """Return how many passes without gradients score a micro-batch, the policy's one of them."""
    models = 2 if objective.needs_reference else 1
    return models * (2 if objective.needs_mismatched else 1)
