"""Everything that may be chosen on a rung without touching the result, the plainest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import product
from math import ceil

from edgetune.choice import Choice
from edgetune.methods.base import Method
from edgetune.planning.defaults import ROWS
from edgetune.planning.ladder import Rung
from edgetune.planning.problem import SearchProblem
from edgetune.settings.spec import (
    PAGED,
    Checkpointing,
    EmbeddingPlace,
    HeadPlace,
    Offload,
    OptimizerName,
)
from edgetune.shape import ModelShape
from edgetune.storage import BYTES, OPTIMIZER_BYTES, blocks_bytes

CHUNKS = (2048, 1024, 512, 256, 128, 64, 32)
"""Loss tokens at once: more read the head fewer times, fewer hold fewer logits."""

TILES = (0, 4096, 1024)
"""Positions that a block is computed on at once: all, then from the fastest to the smallest."""

WORTH_PAGES = 0.02
"""Share of a card's memory from which on the optimizer's state may be left to the host's. Of the
memory, not of the budget: what fits into a budget must fit into a larger one."""


class Space:
    """The neutral knobs of one request."""

    def __init__(self, problem: SearchProblem) -> None:
        """Keep what the user fixed."""
        self.problem = problem
        self._blocks = cache(partial(blocks_bytes, problem.shape))
        self._state = cache(self._state_bytes)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Loss chunks, from the largest."""
        return self.problem.options("loss_chunk", CHUNKS)

    def starts(self, rung: Rung) -> Iterator[Choice]:
        """Yield the choices of a rung, with all that may be checkpointed and the least chunk."""
        problem = self.problem
        for tile, placement, (embedding, head), optimizer, offload, (rows, times) in product(
            self._tiles(rung.context),
            rung.placements,
            self.vocabulary,
            self._optimizers(rung.method),
            self._offloads,
            self.rows,
        ):
            if tile and rows > self.rows[-1][0]:
                continue  # rows are computed one after another first
            choice = Choice(
                method=rung.method,
                quantization=rung.quantization,
                checkpointing=Checkpointing(layers=problem.shape.layers, offload=offload),
                placement=placement,
                embedding=embedding,
                head=head,
                optimizer=optimizer,
                compute_dtype=rung.compute_dtype,
                context=rung.context,
                micro_batch=rows,
                accumulation=times,
                loss_chunk=self.chunks[-1],
                tile=tile,
            )
            if self._possible(choice):
                yield choice

    def ends(self, choice: Choice) -> tuple[Checkpointing, Checkpointing]:
        """Return the least and the most checkpointing that may be chosen."""
        fixed: Checkpointing | None = self.problem.fixed.get("checkpointing")
        if fixed is not None:
            return fixed, fixed
        most = Checkpointing(layers=self.problem.shape.layers, offload=choice.checkpointing.offload)
        if choice.tile or not self._may_keep(choice):
            return most, most
        return Checkpointing(layers=0), most

    def with_layers(self, choice: Choice, layers: int) -> Choice:
        """Return a choice with so many blocks checkpointed, unless their number is fixed."""
        fixed: Checkpointing | None = self.problem.fixed.get("checkpointing")
        if fixed is not None:
            return replace(choice, checkpointing=fixed)
        offload: Offload = choice.checkpointing.offload if layers else "none"
        return replace(choice, checkpointing=Checkpointing(layers=layers, offload=offload))

    def _tiles(self, context: int) -> tuple[int, ...]:
        """Return the tiles of a block, 0 for none."""
        fixed = self.problem.fixed.get("tile")
        if fixed is not None:
            return (fixed,)
        splits = any(block.splits for block in self.problem.shape.kinds)
        return tuple(x for x in TILES if x < context and (splits or not x))

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        """Pairs of micro-batch and accumulation that keep the rows of a step."""
        fixed = self.problem.fixed
        rows, times = fixed.get("micro_batch"), fixed.get("accumulation")
        if rows is not None:
            return [(rows, max(1, ROWS // rows) if times is None else times)]
        if times is not None:
            return [(max(1, ROWS // times), times)]
        pairs = [(ROWS >> halvings, 1 << halvings) for halvings in range(ROWS.bit_length())]
        return [pair for pair in pairs if pair[1] >= self.problem.ranks] or pairs[-1:]

    @cached_property
    def vocabulary(self) -> list[tuple[EmbeddingPlace, HeadPlace]]:
        """Pairs of places for embedding and head; rows of an embedding cost next to nothing."""
        problem, offered = self.problem, self.problem.capability
        embeddings = problem.options("embedding", offered.embeddings)
        heads = problem.options("head", offered.heads)
        pairs = list(product(embeddings, heads))
        if len(pairs) == 4:  # a head on disk beside a resident embedding saves less and costs more
            pairs.remove(("resident", "disk"))
        if problem.shape.tied and len(pairs) == 3:  # a tied head is the embedding
            pairs.remove(("disk", "resident"))
        return pairs

    def _optimizers(self, method: Method) -> tuple[OptimizerName, ...]:
        """Return the optimizers that may be chosen, paged ones where their state is worth a copy."""
        found = self.problem.options("optimizer", self.problem.capability.optimizers)
        if len(found) == 1 or self._state(method) >= WORTH_PAGES * self.problem.device.usable_bytes:
            return found
        return tuple(name for name in found if name != PAGED)

    @property
    def _offloads(self) -> tuple[Offload, ...]:
        kept = self.problem.fixed.get("checkpointing")
        return self.problem.capability.offloads if kept is None else (kept.offload,)

    def _possible(self, choice: Choice) -> bool:
        """Tell whether the backend can do it, and the host has the memory for its part."""
        problem, kept = self.problem, self.problem.fixed.get("checkpointing")
        keeps = kept is not None and kept.layers < problem.shape.layers
        if keeps and not self._may_keep(choice):
            return False
        return self._host_bytes(choice) <= problem.device.host_free_bytes

    def _may_keep(self, choice: Choice) -> bool:
        """Tell whether a block may keep what its backward pass needs."""
        offered = self.problem.capability
        return offered.keeps_blocks and (choice.placement == "resident" or offered.keeps_streamed)

    def _host_bytes(self, choice: Choice) -> int:
        """Return what streaming, offloading and paging keep in the host's memory."""
        weights = self._blocks(choice.quantization) * (choice.placement == "host")
        on_host = choice.checkpointing.offload == "host"
        inputs = inputs_bytes(choice, self.problem.shape) if on_host else 0
        return weights + inputs + (self._state(choice.method) if choice.optimizer == PAGED else 0)

    def _state_bytes(self, method: Method) -> int:
        """Return the bytes of a method's averages in 8 bits."""
        return ceil(OPTIMIZER_BYTES[PAGED] * method.parameters(self.problem.shape))


def inputs_bytes(choice: Choice, shape: ModelShape) -> int:
    """Return the bytes of the inputs of all checkpointed blocks."""
    numbers = choice.checkpointing.layers * choice.tokens * shape.stream_size
    return numbers * BYTES[choice.compute_dtype]
