"""From a choice to its bytes: parts at the peak of training, and the peak of every phase."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import accumulate

from edgetune.choice import Choice
from edgetune.memory.batch_shape import BatchShape, Platform, batch_shape_of
from edgetune.memory.block import Block
from edgetune.memory.block_pass import BlockPass, Passes, SizedMethod, beside, kinds
from edgetune.memory.estimate import MemoryEstimate, Parts, Phases
from edgetune.memory.head import evaluation_bytes, loss_bytes
from edgetune.memory.kernels import kernel_bytes
from edgetune.memory.optimizer import state_bytes, update_bytes
from edgetune.memory.passes import block_pass
from edgetune.memory.runtime import runtime_bytes
from edgetune.memory.scratch import scratch_bytes
from edgetune.memory.step import SLOTS, StepModel
from edgetune.memory.weights import load_bytes, transient_bytes, weight_bytes
from edgetune.methods.base import Footprint, Method, Ranks
from edgetune.objectives import Objective
from edgetune.shape import ModelShape
from edgetune.storage import FILE_FORMAT, FLOAT32_BYTES, QUANTIZED_OUTER

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
        self.ranks = method.ranks(shape)
        self.footprint = [method.footprint(shape, layer) for layer in range(shape.layers)]
        self.first = method.first_layer(shape)
        self.trains_input = method.trains_input
        tensors = method.tensors(shape)
        trained = [tensor for tensor in tensors if tensor.trained]
        self.sizes = [tensor.size for tensor in trained]
        self.by_block = [
            FLOAT32_BYTES * sum(x.size for x in trained if x.name.startswith(shape.block(layer)))
            for layer in range(shape.layers)
        ]
        final = f"{shape.final_norm.module}."
        self.of_head = FLOAT32_BYTES * sum(x.size for x in trained if x.name.startswith(final))
        self.kinds = kinds(method, shape, tensors)
        self._own = SizedMethod(method, shape, {})
        lasting, frozen = beside(self._own, shape, self.kinds)
        self.adapter = FLOAT32_BYTES * sum(tensor.size for tensor in tensors) + lasting
        self.runtime = runtime_bytes(platform.kind, shape.vocabulary)
        self._weights = cache(partial(weight_bytes, shape, lazy=platform.lazy))
        self._passing = cache(partial(transient_bytes, shape, lazy=platform.lazy))
        self._load = cache(partial(load_bytes, shape))
        self._scratch = cache(partial(scratch_bytes, shape, frozen=frozen))
        self._loss = cache(partial(loss_bytes, shape))
        self._evaluated = cache(partial(evaluation_bytes, shape))
        self._state = cache(partial(state_bytes, self.sizes))
        self._update = cache(partial(update_bytes, self.sizes, platform=platform))
        self._step = cache(self._make_step)

    def between_steps(self, choice: Choice) -> int:
        """Return the bytes between steps: weights, adapter, optimizer, runtime, gradients if kept."""
        trained = self.adapter + self._state(choice.optimizer)
        trained += 0 if self.platform.lazy else FLOAT32_BYTES * sum(self.sizes)
        places = (choice.quantization, choice.placement, choice.embedding, choice.head)
        return self._weights(*places) + trained + self.runtime

    def estimate(self, choice: Choice) -> MemoryEstimate:
        """Return what a run of ``choice`` needs."""
        objective = self.objective
        least = 1 if objective is None else objective.documents
        rows = batch_shape_of(
            self.shape, choice, self.platform, self.documents, least=least, forked=self.forked
        )
        step = self._step(rows, choice.quantization, summed=choice.accumulation > 1)
        quantized = self._unpacks_head(choice.quantization)
        loss = self._loss(
            rows, choice.loss_chunk, choice.head,
            quantized=quantized, weighed=objective is not None,
        )  # fmt: skip
        kept = choice.checkpointing
        update = self._update(choice.optimizer)
        transient = self._passing(choice.quantization, choice.placement)
        moment = step.peak(
            kept.layers,
            offload=kept.offload,
            loss=loss,
            update=update,
            transient=transient,
        )
        scratch = self._scratch(rows, choice.quantization, choice.head)
        places = (choice.quantization, choice.placement, choice.embedding, choice.head)
        kernels = kernel_bytes(rows)
        parts = Parts(
            weights=self._weights(*places),
            adapter=self.adapter,
            gradients=moment.gradients,
            optimizer=self._state(choice.optimizer),
            activations=moment.activations,
            loss=moment.loss,
            workspace=scratch + moment.workspace,
            runtime=self.runtime + kernels,
        )
        return _estimate(
            parts,
            load=self._load(choice.quantization) + transient.whole - kernels,  # none is made yet
            evaluation=scratch
            + step.evaluation(
                self._evaluated(rows, choice.loss_chunk, choice.head, quantized=quantized),
                transient.whole,
            ),
            compares=objective is not None and objective.needs_reference,
        )

    def _make_step(self, rows: BatchShape, quantization: str, *, summed: bool) -> StepModel:
        shape, quantized = self.shape, quantization == "nf4" or self._unpacks_head(quantization)

        if not self.platform.lazy:
            interpreted = Passes(self._own, shape, rows, quantized=quantized)
            found = cache(interpreted.of)
            return self._stepped(rows, [found(kind) for kind in self.kinds], summed=summed)

        @cache
        def passes(alike: int, ranks: Ranks, footprint: Footprint, goes_on: bool) -> BlockPass:
            return block_pass(
                Block(
                    shape=shape.blocks[alike], hidden_size=shape.hidden_size, norm=shape.norm,
                    ranks=ranks, footprint=footprint, rows=rows, quantized=quantized,
                    goes_on=goes_on,
                )
            )  # fmt: skip

        goes_on = (self._goes_on(layer) for layer in range(shape.layers))
        layers = zip(shape.alike, self.ranks, self.footprint, goes_on, strict=True)
        return self._stepped(rows, [passes(*layer) for layer in layers], summed=summed)

    def _stepped(self, rows: BatchShape, blocks: Sequence[BlockPass], *, summed: bool) -> StepModel:
        shape = self.shape
        return StepModel(
            blocks,
            first=self.first,
            input_bytes=rows.activation_bytes(shape.hidden_size),
            place=place_bytes(shape, rows),
            grown=self._grown(whole=summed or not self.platform.lazy),
            lent=[
                2 * rows.activation_bytes(block.keys) if layer in shape.lenders else 0
                for layer, block in enumerate(shape.blocks)
            ],
            tables=table_bytes(shape, rows),
            tiled=rows.tile > 0 and all(block.splits or not block.heads for block in shape.kinds),
            late=SLOTS if rows.lazy else 0,
        )

    def _unpacks_head(self, quantization: str) -> bool:
        """Whether MLX has embedding and head in a format that it unpacks."""
        in_blocks = quantization == FILE_FORMAT and self.platform.lazy
        return in_blocks or quantization in QUANTIZED_OUTER

    def _grown(self, *, whole: bool) -> list[int]:
        """Return the bytes of gradients once the blocks from each one on have given theirs.

        ``whole``: all have their place from the first micro-batch on. On MLX those of a block are
        new arrays, which are added to what there is.
        """
        every = FLOAT32_BYTES * sum(self.sizes)
        held = every * self.sums_held
        if whole and not self.platform.lazy:
            return [every + held] * (self.shape.layers + 1)
        if whole:
            return [*(every + held + block for block in self.by_block), every + held]
        shared = every - sum(self.by_block)
        after = [shared + given for given in accumulate(reversed(self.by_block))]
        return [*reversed(after), self.of_head]

    def _goes_on(self, layer: int) -> bool:
        """Tell whether gradients go all the way through a block.

        They do but in the first adapted one, where they end at the first thing that is trained.
        Trained norms are the first thing in a block: all of it is counted.
        """
        begins = self.ranks[layer] or self.footprint[layer].places
        return self.trains_input or layer > self.first or not begins


def place_bytes(shape: ModelShape, rows: BatchShape) -> int:
    """Return what lives through a pass: tokens, targets, positions, what blocks read beside."""
    own = shape.per_layer
    beside = 0 if own is None else rows.activation_bytes(shape.layers * own.size)
    return rows.tokens * INDICES + beside


def table_bytes(shape: ModelShape, rows: BatchShape) -> int:
    """Return the tables of the rotation of all positions; MLX makes them inside of its kernel."""
    turned = 0 if rows.lazy else sum(2 * rotary.dimensions for rotary in shape.rotaries)
    return rows.activation_bytes(turned)


def _estimate(parts: Parts, load: int, evaluation: int, *, compares: bool) -> MemoryEstimate:
    """Return the peak of every phase; gradients and state are there from the first step on.

    A step that ``compares`` with the base evaluates it first.
    """
    between_steps = (
        parts.weights + parts.adapter + parts.gradients + parts.optimizer + parts.runtime
    )
    phases = Phases(
        load=parts.weights + load + parts.runtime + parts.adapter,
        train=max(parts.total, between_steps + evaluation) if compares else parts.total,
        evaluate=between_steps + evaluation,
        save=between_steps
        + max(parts.adapter, 2 * parts.optimizer),  # a copy, and as bytes of a file
    )
    return MemoryEstimate(peak_bytes=phases.peak, phases=phases, parts=parts)
