"""From a choice to its bytes: parts at the peak of training, and the peak of every phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING

from edgetune.buckets import bucket
from edgetune.choice import Choice
from edgetune.memory.batch_shape import BatchShape, Platform, batch_shape_of
from edgetune.memory.block_pass import BlockPass, Passes, SizedMethod, beside
from edgetune.memory.estimate import MemoryEstimate, Parts, Phases
from edgetune.memory.generation import attended_bytes, cache_bytes
from edgetune.memory.head import TRAINED, evaluation_bytes, loss_bytes
from edgetune.memory.loading import Loading
from edgetune.memory.optimizer import state_bytes, update_bytes
from edgetune.memory.scratch import scratch_bytes
from edgetune.memory.step import StepModel
from edgetune.memory.weights import load_bytes, read_bytes, weight_bytes
from edgetune.methods.base import Method
from edgetune.methods.initial import reads_text, text_length
from edgetune.methods.planned import BlockKind, kinds
from edgetune.mixer import Rotary
from edgetune.network.tiles import spans
from edgetune.objectives import Objective
from edgetune.shape import ModelShape
from edgetune.storage import FILE_FORMAT, FLOAT32_BYTES

if TYPE_CHECKING:
    from edgetune.memory.lazy.loss import LazyLoss
    from edgetune.memory.lazy.method import LazyMethod
    from edgetune.memory.lazy.passes import LazyPasses

INDICES = 28
"""Bytes a token of its number, its target, its position, and their copies in other formats."""


def estimate(shape: ModelShape, choice: Choice, platform: Platform) -> MemoryEstimate:
    """Return what a run of ``choice`` needs on a device."""
    return MemoryModel(shape, choice.method, platform).estimate(choice)


class MemoryModel:
    """Estimates choices of one method on one model; what they share is computed once."""

    def __init__(
        self,
        shape: ModelShape,
        method: Method,
        platform: Platform,
        *,
        documents: float | None = None,
        objective: Objective | None = None,
        forked: bool = False,
        sums_held: int = 0,
    ) -> None:
        """Prepare for many choices; ``documents`` and ``forked`` as in :func:`batch_shape_of`.

        ``sums_held`` is how many sums of all gradients wait while another one is made.
        """
        self.sums_held = sums_held
        self.shape = shape
        self.objective = objective
        self.documents = documents
        self.forked = forked
        self.platform = platform
        self.costs = platform.costs
        self.first = method.first_layer(shape)
        tensors = method.tensors(shape)
        trained = [tensor for tensor in tensors if tensor.trained]
        self.sizes = [tensor.size for tensor in trained]
        self.by_block = [
            FLOAT32_BYTES * sum(x.size for x in trained if x.name.startswith(shape.block(layer)))
            for layer in range(shape.layers)
        ]
        final, self.head = f"{shape.final_norm.module}.", method.trained_head(shape)
        self._of_norm = [x for x in trained if x.name.startswith(final)]
        at_end = [x for x in trained if x in self._of_norm or x.name == self.head]
        self.of_head = FLOAT32_BYTES * sum(x.size for x in at_end)
        at_input = [x for x in trained if method.at_input(shape, x.name) and x.name != self.head]
        self.of_input = FLOAT32_BYTES * sum(x.size for x in at_input)
        self.of_all = FLOAT32_BYTES * sum(x.size for x in trained if method.everywhere(x.name))
        self.kinds = kinds(method, shape, tensors)
        self._own = SizedMethod(method, shape, {})
        self._method = method
        lasting, frozen = beside(self._own, shape, self.kinds)
        self.adapter = FLOAT32_BYTES * sum(tensor.size for tensor in tensors) + lasting
        # tensors of a file that are others than those in training
        self.saved_apart = self.adapter if method.folds(shape) else 0
        self.reads_text = any(reads_text(x.initial) for x in tensors)
        self.text = max((text_length(x.initial, x.shape) for x in tensors), default=0)
        self.runtime = self.costs.runtime(shape.vocabulary)
        self._weights = cache(partial(weight_bytes, shape, lazy=self.costs.lazy))
        self._load = cache(self._make_load)
        self._scratch = cache(
            partial(scratch_bytes, shape, frozen=frozen, trained_head=self.head is not None)
        )
        self._loss = cache(self._make_loss)
        self._evaluated = cache(self._make_evaluated)
        self._state = cache(partial(state_bytes, self.sizes))
        self._update = cache(
            partial(update_bytes, self.sizes, costs=self.costs, kernels=platform.kernels)
        )
        self._step = cache(self._make_step)
        self._passes = cache(self._make_passes)
        self._graphs = cache(self._make_graphs)

    def between_steps(self, choice: Choice) -> int:
        """Return the bytes between steps: weights, adapter, optimizer, runtime, gradients if kept."""
        trained = self.adapter + self._state(choice.optimizer)
        trained += 0 if self.costs.lazy else FLOAT32_BYTES * sum(self.sizes)
        places = (choice.quantization, choice.placement, choice.embedding, choice.head)
        return self._weights(*places) + trained + self.runtime

    def estimate(self, choice: Choice) -> MemoryEstimate:
        """Return what a run of ``choice`` needs."""
        objective = self.objective
        least = 1 if objective is None else objective.documents
        rows = batch_shape_of(
            self.shape, choice, self.platform, self.documents, least=least, forked=self.forked
        )
        step = self._step(
            rows, choice.quantization, choice.placement, summed=choice.accumulation > 1
        )
        head = choice.head if self.head is None else TRAINED
        kept = choice.checkpointing
        at_once = replace(rows, tile=0) if kept.layers < self.shape.layers else rows
        in_a_tile = self.costs.lazy and at_once.tile > 0
        learnt = learnt_in_a_tile(choice, at_once) if in_a_tile else choice.tokens
        chunk = min(choice.loss_chunk, bucket(learnt))
        stored = choice.quantization if self.costs.lazy else "none"
        loss = self._loss(
            at_once, chunk, head, stored,
            weighed=objective is not None, summed=choice.accumulation > 1,
        )  # fmt: skip
        update = self._update(choice.optimizer)
        moment = step.peak(kept.layers, offload=kept.offload, loss=loss, update=update)
        in_tiles = self._in_tiles(rows, kept.layers)
        multiplied = rows.of_tile(self.shape.reach) if in_tiles else rows
        scratch = self._scratch(multiplied, choice.quantization, choice.head) + self.costs.reused
        places = (choice.quantization, choice.placement, choice.embedding, choice.head)
        computing = self.costs.kernels if rows.product < FLOAT32_BYTES else 0
        if rows.lazy and rows.tile:
            from edgetune.memory.lazy.tile_attention import described

            computing += described(self.shape, rows)
        parts = Parts(
            weights=self._weights(*places),
            adapter=self.adapter,
            gradients=moment.gradients,
            optimizer=self._state(choice.optimizer),
            activations=moment.activations,
            loss=moment.loss,
            workspace=scratch + moment.workspace,
            runtime=self.runtime + computing,
        )
        return _estimate(
            parts,
            # no kernels are there yet while weights are loaded
            load=max(self._load(places) - computing, self._started(choice, rows)),
            evaluation=scratch
            + step.evaluation(
                max(self._evaluated(rows, chunk, each, stored) for each in {head, choice.head})
            ),
            made=self.saved_apart,
            compares=objective is not None and objective.needs_reference,
        )

    def _make_load(self, places: tuple[str, str, str, str]) -> int:
        """Return the peak of the tensors while they are loaded: the adapter's come last."""
        quantization, placement, *_ = places
        there = self._weights(*places) + self.adapter
        if not self.costs.lazy or quantization == FILE_FORMAT:
            read = read_bytes(self.shape, quantization, placement, lazy=self.costs.lazy)
            return there + load_bytes(self.shape, quantization) + read
        streamed, unpacks = placement != "resident", self.platform.unpacks
        return max(
            there, Loading.peak(self.shape, quantization, streamed=streamed, unpacks=unpacks)
        )

    def _started(self, choice: Choice, rows: BatchShape) -> int:
        """Return the peak while the text is read that some tensors start from; 0: none do.

        A tokenizer of its own cuts it. The base computes on it, if it does, a tile at a time.
        """
        if not self.reads_text:
            return 0
        own = (choice.quantization, choice.placement)
        there = self._weights(*own, choice.embedding, choice.head) + self.adapter
        there += self.runtime - self.costs.libraries
        if not self.text:
            return there
        size = bucket(min(self.text, choice.tile or self.text))
        piece = replace(rows, batch=1, context=size, documents=1, forked=False, tile=0)
        step = self._step(piece, *own, summed=False)
        passing = self._scratch(piece, choice.quantization, choice.head) + step.evaluation(0)
        kept = cache_bytes(self.shape, choice, self.text) + attended_bytes(self.shape, self.text)
        return there + self.costs.reused + passing + kept

    def _make_step(
        self, rows: BatchShape, quantization: str, placement: str, *, summed: bool
    ) -> StepModel:
        shape, streamed = self.shape, placement != "resident"
        if self.costs.lazy:
            from edgetune.memory.lazy.weights import alike

            rows, quantization = alike(rows, quantization, streamed=streamed)
        found = self._passes(rows, quantization, streamed=streamed, summed=summed)
        blocks = [found(kind) for kind in self.kinds]
        lent = [
            2 * rows.activation_bytes(block.keys) if layer in shape.lenders else 0
            for layer, block in enumerate(shape.blocks)
        ]
        return StepModel(
            blocks,
            first=self.first,
            input_bytes=rows.activation_bytes(shape.stream_size),
            place=place_bytes(shape, rows),
            grown=self._grown(whole=summed or not self.costs.lazy),
            lent=lent,
            came_back=[self._came_back(lent, layer) for layer in range(shape.layers)],
            gradients=FLOAT32_BYTES * sum(self.sizes) * (1 + self.sums_held),
            tables=table_bytes(shape, rows),
            tiled=rows.tile > 0 and all(block.splits or not block.heads for block in shape.kinds),
        )

    def _make_passes(
        self, rows: BatchShape, quantization: str, *, streamed: bool, summed: bool
    ) -> Callable[[BlockKind], BlockPass]:
        shape = self.shape
        if self.costs.lazy:
            passes = self._graphs(rows, quantization, streamed=streamed)
            return cache(partial(passes.of, summed=summed))
        return cache(Passes(self._own, shape, rows, quantized=quantization == "nf4").of)

    def _make_graphs(self, rows: BatchShape, quantization: str, *, streamed: bool) -> LazyPasses:
        from edgetune.memory.lazy.passes import LazyPasses

        return LazyPasses(self._lazy, self.shape, rows, quantization, streamed=streamed)

    @cached_property
    def _lazy(self) -> LazyMethod:
        """The method over MLX's graphs, whose interpreter is loaded only where plans are for MLX."""
        from edgetune.memory.lazy.method import LazyMethod

        return LazyMethod(self._method, self.shape, {})

    def _came_back(self, lent: Sequence[int], layer: int) -> int:
        """Return the bytes of the gradients of lent keys and values when a layer goes back."""
        wanted = (x for x in self.shape.lenders if self.first <= x <= layer)
        return sum(lent[x] for x in wanted if self.shape.last_reader(x) > layer)

    def _in_tiles(self, rows: BatchShape, checkpointed: int) -> bool:
        """Whether frozen projections never meet more rows than a tile has: no block keeps what it saves."""
        splits = all(block.splits for block in self.shape.kinds)
        return (
            rows.tile > 0
            and splits
            and checkpointed >= self.shape.layers
            and not self.shape.per_layer
        )

    def _make_loss(
        self, rows: BatchShape, chunk: int, head: str, quantization: str,
        *, weighed: bool, summed: bool,
    ) -> int:  # fmt: skip
        if self.costs.lazy:
            loss = self._lazy_loss(rows, head, quantization)
            return loss.gradient(chunk, weighed=weighed, summed=summed)
        return loss_bytes(self.shape, rows, chunk, head, weighed=weighed)

    def _make_evaluated(self, rows: BatchShape, chunk: int, head: str, quantization: str) -> int:
        if self.costs.lazy:
            return self._lazy_loss(rows, head, quantization).evaluation(chunk)
        return evaluation_bytes(self.shape, rows, chunk, head)

    def _lazy_loss(self, rows: BatchShape, head: str, quantization: str) -> LazyLoss:
        from edgetune.memory.lazy.loss import LazyLoss

        return LazyLoss.of(self._lazy, self._of_norm, self.shape, rows, head, quantization)

    def _grown(self, *, whole: bool) -> list[int]:
        """Return the bytes of the gradients that are there when each block goes back, and at last.

        ``whole``: all have their place from the first micro-batch on. On MLX a block's own are new
        arrays, which are counted with its pass, as those of head and final norm are with the loss;
        those of the input come last of all. The last block is the first to give some of what all
        blocks share.
        """
        if whole:
            every = FLOAT32_BYTES * sum(self.sizes)
            return [every * (1 + self.sums_held)] * (self.shape.layers + 1)
        last, *others = accumulate(reversed(self.by_block[1:]), initial=self.of_head)
        after = [last, *(self.of_all + given for given in others)]
        return [*reversed(after), 0]


def learnt_in_a_tile(choice: Choice, rows: BatchShape) -> int:
    """Return the most loss tokens of a tile: nothing is learned of a trained prompt."""
    first = choice.method.virtual_tokens
    if rows.documents > 1:
        return choice.tokens
    tiles = spans(rows.context, rows.tile)
    most: int = max(min(x.stop, first + choice.context) - max(x.start, first) for x in tiles)
    return choice.micro_batch * most


def place_bytes(shape: ModelShape, rows: BatchShape) -> int:
    """Return what lives through a pass: tokens, targets, positions, what blocks read beside."""
    own = shape.per_layer
    beside = 0 if own is None else rows.activation_bytes(shape.layers * own.size)
    return rows.tokens * INDICES + beside


def table_bytes(shape: ModelShape, rows: BatchShape) -> list[int]:
    """Return the tables of the rotation of all positions that are there when each layer is computed.

    The first layer that wants one makes it. MLX makes them inside of its kernel.
    """
    made, found = set[Rotary](), []
    for block in shape.blocks:
        rule = block.attention
        if rule is not None and not rows.lazy:
            made |= {x for x in (rule.rotary, rule.query_rotary) if x is not None}
        found.append(rows.activation_bytes(sum(2 * rotary.dimensions for rotary in made)))
    return found


def _estimate(
    parts: Parts, load: int, evaluation: int, *, made: int, compares: bool
) -> MemoryEstimate:
    """Return the peak of every phase; gradients and state are there from the first step on.

    ``load`` is that of all tensors until then, ``made`` is what is made to be saved.
    A step that ``compares`` with the base evaluates it first.
    """
    between_steps = (
        parts.weights + parts.adapter + parts.gradients + parts.optimizer + parts.runtime
    )
    phases = Phases(
        load=load + parts.runtime,
        train=max(parts.total, between_steps + evaluation) if compares else parts.total,
        evaluate=between_steps + evaluation,
        save=between_steps + made,  # all else is written from where it lies
    )
    return MemoryEstimate(peak_bytes=phases.peak, phases=phases, parts=parts)
