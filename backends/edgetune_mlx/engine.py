"""Loss and gradients, block by block.

A checkpointed block keeps its input and is computed again for its gradients,
one evaluation a block from the last to the first, so that only one block's activations exist.
The blocks behind the last checkpointed one are one graph, of which the forward part is evaluated first and
then each block's gradients, from the last block to the first: MLX's own order, all at once,
keeps far more alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.backend import Pull
from edgetune.data.answers import Weigh
from edgetune.data.batch import MicroBatch, answer_starts, prompt_batch
from edgetune.methods.adapted import Adapted
from edgetune.network.adaptation import Adaptation
from edgetune_mlx.checkpoints import Entries
from edgetune_mlx.compiled import Blocks
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.loss import Head, Loss, Sums, Wanted, losses_only, token_losses
from edgetune_mlx.memory import Guard
from edgetune_mlx.pulls import Pulls, at_starts
from edgetune_mlx.token_layout import TokenLayout

Gradients = dict[str, mx.array]


@dataclass(frozen=True, slots=True)
class Pass:
    """A micro-batch on its way through the blocks, to be differentiated."""

    tokens: mx.array
    layout: TokenLayout
    wanted: Wanted
    method: Adapted[mx.array]
    scale: float
    grads: Gradients
    """The gradients of a step, to which those of this micro-batch are added as they are found."""
    weigh: Weigh | None = None
    lent_grads: dict[int, list[mx.array]] = field(default_factory=dict)
    """Gradients of keys and values by the layer that lent them, of the blocks so far."""

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
        self.guard = guard
        self.checkpointed = checkpointed
        self.chunk = chunk
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
        batch, layout = self._placed(batch, method)
        wanted = Wanted.of(batch.targets, self.chunk)
        run = Pass(mx.array(batch.tokens), layout, wanted, method, scale, into, weigh)
        first, last = method.first_layer, self.decoder.shape.layers
        whole = weigh is not None or bool(self.decoder.shape.lenders)
        cut = last if whole else max(first, min(self.checkpointed, last))
        x = self._through(run, range(first), self.decoder.embed(run.tokens, run.layout, method))
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
        batch, layout = self._placed(batch, method)
        wanted = Wanted.of(batch.targets, self.chunk)
        run = Pass(mx.array(batch.tokens), layout, wanted, method, 1.0, into)
        first, last = method.first_layer, self.decoder.shape.layers
        pulls = Pulls(pull, answer_starts(batch.targets))
        x = self._through(run, range(first), self.decoder.embed(run.tokens, layout, method))
        with self.entries as entries:
            for layer in range(first, last):
                entries.push(x)
                x = self._through(run, (layer,), x)
            grad = pulls.added(last - 1, x, mx.zeros_like(x))
            del x
            for layer in reversed(range(first, last)):
                block_input = entries.pop()
                grad = self._checkpointed(run, layer, block_input, grad)
                if layer > first:
                    grad = pulls.added(layer - 1, block_input, grad)
                del block_input
        if method.trains_input:
            self._input(run, grad)

    def activations(self, batch: MicroBatch, method: Adaptation[mx.array]) -> NDArray[np.float32]:
        """Return the output of each block (L, B, D) where the rows' answers begin."""
        batch, layout = self._placed(batch, method)
        starts, found = answer_starts(batch.targets), []
        x = self.decoder.embed(mx.array(batch.tokens), layout, method)
        for layer in range(self.decoder.shape.layers):
            x = self.decoder.block(layer, x, layout, method)
            self._evaluate(x, *layout.lent.get(layer, ()))
            found.append(at_starts(x, starts))
        return np.stack(found)

    def evaluate(self, batch: MicroBatch, method: Adaptation[mx.array]) -> Sums:
        """Return the summed loss of a micro-batch."""
        batch, layout = self._placed(batch, method)
        x = self._hidden(mx.array(batch.tokens), layout, method)
        return self._loss(x, batch.targets, method)

    def evaluate_rows(self, batch: MicroBatch, method: Adaptation[mx.array]) -> list[Sums]:
        """Return the summed loss of each row of a micro-batch."""
        batch, layout = self._placed(batch, method)
        x = self._hidden(mx.array(batch.tokens), layout, method)
        each = method.of_rows(len(batch.tokens))
        return [
            self._loss(x[i : i + 1], batch.targets[i : i + 1], one) for i, one in enumerate(each)
        ]

    def losses(self, batch: MicroBatch, method: Adaptation[mx.array]) -> NDArray[np.float32]:
        """Return the loss of each loss token of a micro-batch, in order, (N,)."""
        batch, layout = self._placed(batch, method)
        x = self._hidden(mx.array(batch.tokens), layout, method)
        return self._losses(x, Wanted.of(batch.targets, self.chunk), method)

    def logits(self, row: Sequence[int], method: Adaptation[mx.array]) -> NDArray[np.float32]:
        """Return float32 logits (S, V) after each token of one row."""
        batch, layout = self.decoder.placed(prompt_batch([row]), method)
        x = self._hidden(mx.array(batch.tokens), layout, method)[0]
        logits = np.array(self.head.of(method).logits(self.decoder.final_norm(x, method)))
        return logits[method.virtual_tokens :][: len(row)]

    def _placed(
        self, batch: MicroBatch, method: Adaptation[mx.array]
    ) -> tuple[MicroBatch, TokenLayout]:
        """Return a micro-batch as the method wants it, and where its tokens stand."""
        self.guard.divisible = len(batch.tokens) > 1
        return self.decoder.placed(batch, method)

    def _loss(self, x: mx.array, targets: NDArray[np.int32], method: Adaptation[mx.array]) -> Sums:
        """Return the summed loss of the last block's output (B, S, D)."""
        wanted = Wanted.of(targets, self.chunk)
        selected = self.decoder.final_norm(x.flatten(0, 1)[wanted.at], method)
        sums = losses_only(selected, wanted, self.head.of(method), chunk=self.chunk)
        self.guard.check()
        return sums

    def _hidden(
        self, tokens: mx.array, layout: TokenLayout, method: Adaptation[mx.array]
    ) -> mx.array:
        """Return the output of the last block (B, S, D)."""
        x = self.decoder.embed(tokens, layout, method)
        for layer in range(self.decoder.shape.layers):
            x = self.decoder.block(layer, x, layout, method)
            self._evaluate(x, *layout.lent.get(layer, ()))
        return x

    def _through(self, run: Pass, layers: Iterable[int], x: mx.array) -> mx.array:
        """Return the output of blocks of which nothing is kept."""
        for layer in layers:
            x = self.blocks.forward(layer, x, run.layout, run.method)
            self._evaluate(x, *run.layout.lent.get(layer, ()))
        return x

    def _losses(
        self, x: mx.array, wanted: Wanted, method: Adaptation[mx.array]
    ) -> NDArray[np.float32]:
        """Return the losses (N,) of the last block's output (B, S, D)."""
        normed = self.decoder.final_norm(x.flatten(0, 1)[wanted.at], method)
        losses = token_losses(normed, wanted, self.head.of(method), chunk=self.chunk)
        self.guard.check()
        return losses

    def _head_alone(self, run: Pass, _: range, x: mx.array) -> tuple[Sums, mx.array]:
        if run.weigh is not None:
            weights = run.weigh(self._losses(x, run.wanted, run.method))
            run = replace(run, wanted=run.wanted.weighed(weights))
        loss, grad, found = self._head(run, x)
        with self.guard.in_order():
            loss.evaluate()
        sums = Sums.of(loss.losses, run.wanted.count)
        del loss  # what comes behind it does not need it
        self._evaluate(grad, _added(run.grads, found))
        return sums, grad

    def _open_blocks(self, run: Pass, layers: range, x: mx.array) -> tuple[Sums, mx.array]:
        """Return the loss and the gradient of x; add those of the tensors behind it.

        The function that is differentiated has the right gradient, not the right value: the
        last output times its gradient, which the head computed without autograd.
        """

        def product(x: mx.array, own: list[Gradients]) -> tuple[mx.array, Any]:
            for layer, tensors in zip(layers, own, strict=True):
                x = self.decoder.block(layer, x, run.layout, run.method.over(tensors))
            last = mx.stop_gradient(x)
            loss, grad, grads = self._head(run, last)
            return (x * grad).sum(), (last, (loss.losses, loss.grad, loss.stages), grads)

        own = [run.method.of_block(layer) for layer in layers]
        with self.decoder.graph:
            (value, found), (x_grad, of_blocks) = mx.value_and_grad(product, argnums=(0, 1))(x, own)
        last, parts, of_head = found
        if not self._goes_on(run, layers.start):
            x_grad = x  # nobody asks for it: its graph would be kept
        del value  # and so would its own
        self._evaluate(last)
        del last, found
        loss = Loss(*parts)
        with self.guard.in_order():
            loss.evaluate()
        sums = Sums.of(loss.losses, run.wanted.count)
        del loss, parts  # the way back through the blocks does not need them
        self._evaluate(_added(run.grads, of_head))
        while of_blocks:
            self._evaluate(_added(run.grads, of_blocks.pop()))
        self._evaluate(x_grad)
        return sums, x_grad

    def _head(self, run: Pass, x: mx.array) -> tuple[Loss, mx.array, Gradients]:
        """Return the loss, the gradient (B, S, D) of x, and those of the final norm and the head."""
        flat, wanted = x.flatten(0, 1), run.wanted
        selected, own = flat[wanted.at], run.method.of_head()

        def final(x: mx.array, *tensors: mx.array) -> mx.array:
            method = run.method.over(dict(zip(own, tensors, strict=True)))
            return self.decoder.final_norm(x, method)

        inputs = [selected, *own.values()]
        name = run.method.spec.trained_head(self.decoder.shape)
        before = None if name is None else run.grads.pop(name, None)
        loss = Loss.of(
            final(*inputs), wanted, self.head.of(run.method),
            chunk=self.chunk, scale=run.scale, before=before,
        )  # fmt: skip
        grad, *grads = mx.vjp(final, inputs, [loss.grad])[1]
        spread = mx.zeros_like(flat).at[wanted.at].add(grad).reshape(x.shape)
        found = dict(zip(own, grads, strict=True))
        if name is not None and loss.head_grad is not None:
            found[name] = loss.head_grad
        return loss, spread, found

    def _checkpointed(
        self, run: Pass, layer: int, block_input: mx.array, grad: mx.array
    ) -> mx.array:
        """Return the gradient of a block's input; add those of its tensors."""
        layout, grads = run.layout, [grad]
        if layer in layout.lent:
            nothing = [mx.zeros_like(x) for x in layout.lent.pop(layer)]
            grads += run.lent_grads.pop(layer, nothing)
        read, found = self.blocks.backward(layer, block_input, grads, layout, run.method)
        wanted = [read[0] if self._goes_on(run, layer) else grad]
        source = self.decoder.shape.source(layer)
        if source is not None and self._wants(run, source):
            wanted += run.came_back(source, read[1:])
        del read  # the graph of what nobody asks for would be kept
        self._evaluate(_added(run.grads, found), *wanted)
        return wanted[0]

    def _input(self, run: Pass, grad: mx.array) -> None:
        """Add the gradients of what the method does to the embeddings."""
        own = run.method.of_input()

        def embed(*tensors: mx.array) -> mx.array:
            method = run.method.over(dict(zip(own, tensors, strict=True)))
            return self.decoder.embed(run.tokens, run.layout, method)

        found = mx.vjp(embed, list(own.values()), [grad])[1]
        self._evaluate(_added(run.grads, dict(zip(own, found, strict=True))))

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


def _added(grads: Gradients, found: Gradients) -> Gradients:
    """Add what was found and return the sums that it changed."""
    for name, grad in found.items():
        grads[name] = grads[name] + grad if name in grads else grad
    return {name: grads[name] for name in found}
