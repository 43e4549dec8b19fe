"""One block's passes on MLX: its text run over a graph, which is then evaluated.

The engine asks for a block's gradients one by one, the last tensor's first, and for its input's
last (``backends/edgetune_mlx/engine.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.block_pass import BlockPass
from edgetune.memory.lazy.arrays import into_sum
from edgetune.memory.lazy.evaluation import AHEAD, Evaluation
from edgetune.memory.lazy.gradients import vjp
from edgetune.memory.lazy.graph import Array, given
from edgetune.memory.lazy.method import LazyMethod
from edgetune.memory.lazy.ops import LazyOps
from edgetune.memory.lazy.tiled import TiledGraphs
from edgetune.memory.lazy.weights import FrozenBlock, frozen_block
from edgetune.memory.ledger import Ledger
from edgetune.methods.planned import BlockKind
from edgetune.network.block import Block
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a block makes, its output first, and the frozen tensors it was computed with."""

    arrays: tuple[Array, ...]
    frozen: FrozenBlock


@dataclass(frozen=True, slots=True)
class Graph:
    """What a block makes, and its gradients as they are asked for: those of what it reads last.

    ``plain`` and ``inference`` are the peaks of passes of which no gradients are asked for.
    """

    outputs: Outputs
    trained: dict[str, Array]
    read: list[Array]
    plain: int
    inference: int

    def asked(self, kind: BlockKind, added: Callable[[str], bool]) -> list[Array]:
        """Return the gradients that are wanted; some of the trained are ``added`` to what is there."""
        entry, *lent = self.read
        own = [
            into_sum(grad) if added(name) else grad for name, grad in reversed(self.trained.items())
        ]
        return [*own, *[entry] * kind.goes_on, *(lent if kind.to_lender else ())]


class LazyPasses:
    """The passes of a method's blocks on rows of one shape."""

    def __init__(
        self, own: LazyMethod, shape: ModelShape, rows: BatchShape, quantization: str,
        *, streamed: bool, ahead: int = AHEAD,
    ) -> None:  # fmt: skip
        """Prepare for the kinds of blocks that there are."""
        self.own, self.shape, self.rows, self.quantization = own, shape, rows, quantization
        self.streamed, self.ahead = streamed, ahead
        self._entry = (rows.batch, rows.context, shape.stream_size)
        self._graphs: dict[BlockKind, Graph] = {}

    def of(self, kind: BlockKind, *, summed: bool = False) -> BlockPass:
        """Return the bytes of a block's passes.

        ``summed``: gradients of another micro-batch are there, to which this one's are added.
        """
        graph, everywhere = self._graph(kind), self.own.spec.everywhere
        asked = graph.asked(kind, lambda name: summed or (kind.adds and everywhere(name)))
        kept, forward, backward = self._in_one_graph(graph.outputs, asked)
        if self.rows.tile and self.shape.blocks[kind.layer].splits:
            plain, inference, again = self._in_tiles(kind, summed=summed)
        else:
            plain, inference, again = self._at_once(graph, asked)
        return BlockPass(
            kept=kept, forward=forward, plain=plain, inference=inference,
            backward=backward, again=again,
        )  # fmt: skip

    def _in_tiles(self, kind: BlockKind, *, summed: bool) -> tuple[int, int, int]:
        """Return the peaks without gradients, in training and not, and with them, of a block in tiles."""
        tiles = TiledGraphs(
            self.own, self.shape, kind, self.rows, self.quantization, self.streamed, self.ahead
        )
        plain = inference = tiles.forward(training=True)
        if self.own.spec.draws:
            inference = tiles.forward(training=False)
        return plain, inference, tiles.again(summed=summed)

    def _at_once(self, graph: Graph, asked: Sequence[Array]) -> tuple[int, int, int]:
        """Return the same of a block that is computed at once.

        Where others are computed in tiles it joins its input, and the gradient, beside those of
        the tiles.
        """
        size = self.shape.stream_size
        joined = self.rows.activation_bytes(size) if self.rows.tile else 0
        again = self._again(graph.outputs.frozen, asked)
        return graph.plain + joined, graph.inference + joined, again + 2 * joined

    def _plain(self, outputs: Outputs) -> int:
        """Return the peak of a pass of which nothing but what it makes is asked for."""
        ledger = Ledger()
        evaluation = self._begin(ledger, outputs.arrays, outputs.frozen)
        for array in outputs.arrays:
            evaluation.evaluate(array)
        return ledger.peak

    def _in_one_graph(self, outputs: Outputs, asked: Sequence[Array]) -> tuple[int, int, int]:
        """Return what is kept of a pass forward, its peak, and that of the way back."""
        ledger, out = Ledger(), outputs.arrays[0]
        evaluation = self._begin(ledger, [out, *asked], outputs.frozen)
        evaluation.evaluate(out)
        evaluation.settle()
        kept, forward = ledger.live, ledger.peak
        evaluation.drop(out)
        ledger.peak = ledger.live
        for grad in asked:
            evaluation.evaluate(grad)
        return kept, forward, ledger.peak

    def _again(self, frozen: FrozenBlock, asked: Sequence[Array]) -> int:
        """Return the peak of a block's gradients where it is computed again for them."""
        ledger = Ledger()
        evaluation = self._begin(ledger, asked, frozen)
        for grad in asked:
            evaluation.evaluate(grad)
        return ledger.peak

    def _begin(self, ledger: Ledger, held: Sequence[Array], frozen: FrozenBlock) -> Evaluation:
        """Return an evaluation; the numbers of a streamed file are read before it begins."""
        evaluation = Evaluation(ledger, held, ahead=self.ahead)
        if self.streamed and self.quantization == "none":
            for part in frozen.parts:
                evaluation.evaluate(part)
        return evaluation

    def _graph(self, kind: BlockKind) -> Graph:
        """Return the graph of a block and of all its gradients.

        Blocks that differ in which gradients are wanted, and where these go, share it.
        """
        whole = replace(kind, goes_on=True, to_lender=True, gives_first=False, adds=False)
        if whole not in self._graphs:
            self._graphs[whole] = self._made(kind)
        return self._graphs[whole]

    def _made(self, kind: BlockKind) -> Graph:
        read, tensors = self._read(kind), self._tensors(kind)
        trained = [each.name for each in kind.tensors if each.trained]
        made: list[Outputs] = []

        def output(*inputs: Array) -> tuple[Array, ...]:
            own = zip(trained, inputs[len(read) :], strict=True)
            over = tensors | dict(own)
            made.append(self._output(kind, inputs[: len(read)], over, training=True))
            return made[0].arrays

        lends = self._lent(kind.layer) if kind.layer in self.shape.lenders else ()
        grads = [given(self._entry, self.rows.width), *lends]
        found = vjp(output, [*read, *(tensors[name] for name in trained)], grads)
        plain = inference = self._plain(made[0])
        if self.own.spec.draws:  # in an evaluation nothing is drawn
            inference = self._plain(self._output(kind, read, tensors, training=False))
        of_read, of_trained = found[: len(read)], found[len(read) :]
        own = dict(zip(trained, of_trained, strict=True))
        return Graph(made[0], own, of_read, plain, inference)

    def _output(
        self, kind: BlockKind, read: Sequence[Array], tensors: Mapping[str, Array],
        *, training: bool,
    ) -> Outputs:  # fmt: skip
        """Return what a block makes of what it reads, its output first."""
        frozen = frozen_block(
            self.shape, kind.layer, self.rows, self.quantization, streamed=self.streamed
        )
        own = self.own.with_tensors(tensors, training=training)
        x, *others = read
        ops = LazyOps(self.shape, self.rows, frozen, kind.layer, tuple(others))
        out = Block(ops, self.shape, kind.layer, own).output(x)
        return Outputs((out, *ops.lending), frozen)

    def _read(self, kind: BlockKind) -> list[Array]:
        """Return what a block reads: its input, and keys and values of another block."""
        source = self.shape.source(kind.layer)
        lent = () if source is None else self._lent(source)
        return [given(self._entry, self.rows.width), *lent]

    def _lent(self, layer: int) -> Sequence[Array]:
        """Return keys and values of a block, or their gradients, that are there."""
        block, rows = self.shape.blocks[layer], self.rows
        shape = (rows.batch, block.kv_heads, rows.context, block.head_dim)
        return [given(shape, rows.width) for _ in range(2)]

    def _tensors(self, kind: BlockKind) -> dict[str, Array]:
        return {each.name: given(each.shape, FLOAT32_BYTES) for each in kind.tensors}
