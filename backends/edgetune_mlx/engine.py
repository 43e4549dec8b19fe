"""Loss and gradients, block by block.

A checkpointed block keeps its input and is computed again for its gradients,
one evaluation a block from the last to the first, so that only one block's activations exist.
The blocks behind the last checkpointed one are one graph, of which the forward part is evaluated first and
then each block's gradients, from the last block to the first: MLX's own order, all at once,
keeps far more alive.

With tiles (:mod:`edgetune_mlx.tiles`) checkpointed blocks go over some positions of the rows at a time,
and so do the embedding and the loss; hidden states are lists of the tiles' arrays then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.backend import Pull
from edgetune.data.answers import Weigh
from edgetune.data.batch import MicroBatch, answer_starts, prompt_batch
from edgetune.methods.adapted import Adapted
from edgetune.network.adaptation import Adaptation
from edgetune_mlx.checkpoints import Entries, States
from edgetune_mlx.compiled import Blocks
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.gradients import Gradients, added
from edgetune_mlx.head_loss import HeadLoss
from edgetune_mlx.loss import Head, Loss, Parts, Sums, Wanted
from edgetune_mlx.memory import Guard
from edgetune_mlx.pulls import Pulls, at_starts
from edgetune_mlx.tiles import TiledBlocks, joined
from edgetune_mlx.token_layout import TokenLayout


@dataclass(frozen=True, slots=True)
class Pass:
    """A micro-batch on its way through the blocks, to be differentiated."""

    tokens: mx.array
    tiled: TiledBlocks
    wanted: Parts
    method: Adapted[mx.array]
    scale: float
    grads: Gradients
    """The gradients of a step, to which those of this micro-batch are added as they are found."""
    weigh: Weigh | None = None
    lent_grads: dict[int, list[mx.array]] = field(default_factory=dict)
    """Gradients of keys and values by the layer that lent them, of the blocks so far."""

    @property
    def layout(self) -> TokenLayout:
        """Where the tokens stand."""
        return self.tiled.layout

    def came_back(self, source: int, grads: Sequence[mx.array]) -> list[mx.array]:
        """Add the gradients of keys and values that a layer lent; return the sums."""
        before = self.lent_grads.get(source)
        sums = [*grads] if before is None else [a + b for a, b in zip(before, grads, strict=True)]
        self.lent_grads[source] = sums
        return sums


class Engine:
    """Runs micro-batches through a decoder with an adaptation."""

    def __init__(
        self,
        decoder: Decoder,
        head: Head,
        guard: Guard,
        *,
        checkpointed: int,
        chunk: int,
        entries: Entries,
        compiled: bool = False,
    ) -> None:
        """Checkpoint the first blocks; hold ``chunk`` tokens' logits at once."""
        self.decoder = decoder
        self.blocks = Blocks(decoder, compiled=compiled)
        self.head = head
        self.head_loss = HeadLoss(decoder, head, guard, chunk)
        self.guard = guard
        self.checkpointed = checkpointed
        self.entries = entries

    def gradients(
        self,
        batch: MicroBatch,
        method: Adapted[mx.array],
        *,
        scale: float,
        into: Gradients,
        weigh: Weigh | None = None,
    ) -> Sums:
        """Return the summed loss; add ``scale`` times its gradient by each trained tensor.

        ``weigh`` is told the losses of the loss tokens (N,), in order, and says how much each
        counts; without it each counts once. It needs numbers between the two passes, which one
        graph of blocks does not have: all blocks are checkpointed then. So they are where some
        lend keys and values, or the graph would be held until the last gradient of those.
        """
        batch, tiled = self._placed(batch, method)
        first, last = method.first_layer, self.decoder.shape.layers
        whole = weigh is not None or bool(self.decoder.shape.lenders)
        cut = last if whole else max(first, min(self.checkpointed, last))
        every = slice(0, batch.targets.shape[1])
        wanted = self.head_loss.wanted(batch.targets, tiled.spans if cut == last else [every])
        run = Pass(mx.array(batch.tokens), tiled, wanted, method, scale, into, weigh)
        x = self._through(run, range(first), self._embedded(run.tokens, tiled, method))
        with self.entries as entries:
            for layer in range(first, cut):
                entries.push(x)
                x = self._through(run, (layer,), x)
            closed = self._head_alone if cut == last else self._open_blocks
            sums, grad = closed(run, range(cut, last), x)
            del x
            for layer in reversed(range(first, cut)):
                grad = self._checkpointed(run, layer, entries.pop(), grad)
        if method.trains_input:
            self._input(run, grad)
        return sums

    def pull(
        self, batch: MicroBatch, method: Adapted[mx.array], pull: Pull, into: Gradients
    ) -> None:
        """Add the gradient of what ``pull`` is the gradient of, by each trained tensor.

        It is told the output (B, D) of each block where the rows' answers begin.
        """
        batch, tiled = self._placed(batch, method)
        wanted = self.head_loss.wanted(batch.targets, tiled.spans)
        run = Pass(mx.array(batch.tokens), tiled, wanted, method, 1.0, into)
        first, last = method.first_layer, self.decoder.shape.layers
        pulls = Pulls(pull, answer_starts(batch.targets))
        x = self._through(run, range(first), self._embedded(run.tokens, tiled, method))
        with self.entries as entries:
            for layer in range(first, last):
                entries.push(x)
                x = self._through(run, (layer,), x)
            grad = [mx.zeros_like(part) for part in x]
            pulls.add(last - 1, pulls.at_starts(x), grad)
            del x
            for layer in reversed(range(first, last)):
                block_input = entries.pop()
                begin = pulls.at_starts(block_input)
                grad = self._checkpointed(run, layer, block_input, grad)
                del block_input
                if layer > first:
                    pulls.add(layer - 1, begin, grad)
        if method.trains_input:
            self._input(run, grad)

    def activations(self, batch: MicroBatch, method: Adaptation[mx.array]) -> NDArray[np.float32]:
        """Return the output of each block (L, B, D) where the rows' answers begin."""
        batch, tiled = self._placed(batch, method)
        starts, found = answer_starts(batch.targets), []
        x = self._embedded(mx.array(batch.tokens), tiled, method)
        for layer in range(self.decoder.shape.layers):
            x = self._next(layer, x, tiled, method)
            found.append(at_starts(x, starts))
        return np.stack(found)

    def evaluate(self, batch: MicroBatch, method: Adaptation[mx.array]) -> Sums:
        """Return the summed loss of a micro-batch."""
        batch, tiled = self._placed(batch, method)
        x = tiled.parts(self._hidden(mx.array(batch.tokens), tiled, method))
        return self.head_loss.summed(x, self.head_loss.wanted(batch.targets, tiled.spans), method)

    def evaluate_rows(self, batch: MicroBatch, method: Adaptation[mx.array]) -> list[Sums]:
        """Return the summed loss of each row of a micro-batch."""
        batch, tiled = self._placed(batch, method)
        x = self._hidden(mx.array(batch.tokens), tiled, method)
        each = method.of_rows(len(batch.tokens))
        sums = []
        for i, one in enumerate(each):
            row = tiled.parts([part[i : i + 1] for part in x])
            wanted = self.head_loss.wanted(batch.targets[i : i + 1], tiled.spans)
            sums.append(self.head_loss.summed(row, wanted, one))
        return sums

    def losses(self, batch: MicroBatch, method: Adaptation[mx.array]) -> NDArray[np.float32]:
        """Return the loss of each loss token of a micro-batch, in order, (N,)."""
        batch, tiled = self._placed(batch, method)
        x = tiled.parts(self._hidden(mx.array(batch.tokens), tiled, method))
        wanted = self.head_loss.wanted(batch.targets, tiled.spans)
        return self.head_loss.of_tokens(x, wanted, method)

    def logits(self, row: Sequence[int], method: Adaptation[mx.array]) -> NDArray[np.float32]:
        """Return float32 logits (S, V) after each token of one row."""
        batch, tiled = self._placed(prompt_batch([row]), method)
        x = joined(self._hidden(mx.array(batch.tokens), tiled, method))[0]
        logits = np.array(self.head.of(method).logits(self.decoder.final_norm(x, method)))
        return logits[method.virtual_tokens :][: len(row)]

    def _placed(
        self, batch: MicroBatch, method: Adaptation[mx.array]
    ) -> tuple[MicroBatch, TiledBlocks]:
        """Return a micro-batch as the method wants it, and the blocks over its tokens."""
        self.guard.divisible = len(batch.tokens) > 1
        batch, layout = self.decoder.placed(batch, method)
        return batch, TiledBlocks(self.decoder, layout, self._evaluate)

    def _embedded(
        self, tokens: mx.array, tiled: TiledBlocks, method: Adaptation[mx.array]
    ) -> States:
        """Return the input of the first block."""
        if len(tiled.spans) == 1 or self.decoder.shape.per_layer is not None:
            return [self.decoder.embed(tokens, tiled.layout, method)]
        x = States()
        for span in tiled.spans:
            x.append(self.decoder.embed(tokens[:, span], tiled.layout.of_span(span), method))
            self._evaluate(x[-1])
        return x

    def _hidden(self, tokens: mx.array, tiled: TiledBlocks, method: Adaptation[mx.array]) -> States:
        """Return the output of the last block."""
        x = self._embedded(tokens, tiled, method)
        for layer in range(self.decoder.shape.layers):
            x = self._next(layer, x, tiled, method)
        return x

    def _next(
        self, layer: int, x: States, tiled: TiledBlocks, method: Adaptation[mx.array]
    ) -> States:
        """Return the output of a block in an evaluation."""
        if tiled.splits(layer):
            return tiled.forward(layer, x, method)
        x = [self.decoder.block(layer, joined(x), tiled.layout, method)]
        self._evaluate(*x, *tiled.layout.lent.get(layer, ()))
        return x

    def _through(self, run: Pass, layers: Iterable[int], x: States) -> States:
        """Return the output of blocks of which nothing is kept."""
        for layer in layers:
            if run.tiled.splits(layer):
                x = run.tiled.forward(layer, x, run.method)
            else:
                x = [self.blocks.forward(layer, joined(x), run.layout, run.method)]
                self._evaluate(*x, *run.layout.lent.get(layer, ()))
        return x

    def _head_alone(self, run: Pass, _: range, x: States) -> tuple[Sums, States]:
        """Return the loss and the gradient of x, which is used up; add those of the head."""
        x[:] = run.tiled.parts(x)
        wanted, sums = run.wanted, Sums()
        if run.weigh is not None:
            wanted = wanted.weighed(run.weigh(self.head_loss.of_tokens(x, wanted, run.method)))
        for number, own in enumerate(wanted.each):
            loss, grad, found = self._ending(run, x[number], own)
            with self.guard.in_order():
                loss.evaluate()
            sums.add(Sums.of(loss.losses, own.count))
            of_head = added(run.grads, found)
            del loss, found  # what comes behind them does not need them
            self._evaluate(grad, of_head)
            x[number] = grad
        return sums, [*x]

    def _open_blocks(self, run: Pass, layers: range, x: States) -> tuple[Sums, States]:
        """Return the loss and the gradient of x; add those of the tensors behind it.

        The function that is differentiated has the right gradient, not the right value: the
        last output times its gradient, which the head computed without autograd.
        """

        def product(x: mx.array, own: list[Gradients]) -> tuple[mx.array, Any]:
            for layer, tensors in zip(layers, own, strict=True):
                x = self.decoder.block(layer, x, run.layout, run.method.over(tensors))
            last = mx.stop_gradient(x)
            loss, grad, grads = self._ending(run, last, wanted)
            return (x * grad).sum(), (last, (loss.losses, loss.grad, loss.stages), grads)

        own, (wanted,) = [run.method.of_block(layer) for layer in layers], run.wanted.each
        start = joined(x)
        with self.decoder.graph:
            (value, found), (x_grad, of_blocks) = mx.value_and_grad(product, argnums=(0, 1))(
                start, own
            )
        last, parts, of_head = found
        if not self._goes_on(run, layers.start):
            x_grad = start  # nobody asks for it: its graph would be kept
        del value  # and so would its own
        self._evaluate(last)
        del last, found
        loss = Loss(*parts)
        with self.guard.in_order():
            loss.evaluate()
        sums = Sums.of(loss.losses, wanted.count)
        del loss, parts  # the way back through the blocks does not need them
        self._evaluate(added(run.grads, of_head))
        while of_blocks:
            self._evaluate(added(run.grads, of_blocks.pop()))
        self._evaluate(x_grad)
        return sums, [x_grad]

    def _ending(self, run: Pass, x: mx.array, wanted: Wanted) -> tuple[Loss, mx.array, Gradients]:
        """Return the loss, the gradient (B, S, D) of x, and those of the final norm and the head."""
        return self.head_loss.gradient(x, wanted, run.method, run.scale, run.grads)

    def _checkpointed(self, run: Pass, layer: int, block_input: States, grad: States) -> States:
        """Return the gradient of a block's input; add those of its tensors."""
        if run.tiled.splits(layer):
            add, goes_on = partial(added, run.grads), self._goes_on(run, layer)
            run.tiled.backward(layer, block_input, grad, run.method, add, goes_on=goes_on)
            return grad
        layout, grads = run.layout, [joined(grad)]
        if layer in layout.lent:
            nothing = [mx.zeros_like(x) for x in layout.lent.pop(layer)]
            grads += run.lent_grads.pop(layer, nothing)
        read, found = self.blocks.backward(layer, joined(block_input), grads, layout, run.method)
        wanted = [read[0] if self._goes_on(run, layer) else grads[0]]
        source = self.decoder.shape.source(layer)
        if source is not None and self._wants(run, source):
            wanted += run.came_back(source, read[1:])
        of_trained = added(run.grads, found)
        # a graph that nobody asks for would be kept, and gradients beside the sums of them
        del read, found
        self._evaluate(of_trained, *wanted)
        return wanted[:1]

    def _input(self, run: Pass, grad: States) -> None:
        """Add the gradients of what the method does to the embeddings."""
        own, tiled, whole = run.method.of_input(), run.tiled, run.layout

        def embed(*tensors: mx.array, span: slice, layout: TokenLayout) -> mx.array:
            method = run.method.over(dict(zip(own, tensors, strict=True)))
            return self.decoder.embed(run.tokens[:, span], layout, method)

        for span, part in zip(tiled.spans, tiled.parts(grad), strict=True):
            layout = whole if len(tiled.spans) == 1 else whole.of_span(span)
            found = mx.vjp(partial(embed, span=span, layout=layout), list(own.values()), [part])[1]
            self._evaluate(added(run.grads, dict(zip(own, found, strict=True))))

    def _goes_on(self, run: Pass, layer: int) -> bool:
        """Tell whether the gradient of a block's input is needed."""
        return run.method.trains_input or layer > run.method.first_layer

    def _wants(self, run: Pass, source: int) -> bool:
        """Tell whether the gradients of keys and values that a block lent are needed."""
        return run.method.trains_input or source >= run.method.first_layer

    def _evaluate(self, *arrays: mx.array | Gradients) -> None:
        """Evaluate arrays; of gradients those first whose tensors come last in a block.

        Asked for all at once, MLX makes them at the very end, and keeps what they are products
        of until then.
        """
        for found in arrays:
            if isinstance(found, dict):
                for grad in reversed(found.values()):
                    mx.async_eval(grad)  # type: ignore[no-untyped-call]
        mx.eval(*arrays)
        self.guard.check()
