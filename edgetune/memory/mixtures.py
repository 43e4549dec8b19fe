"""Bytes of a mixture of experts, as the torch engine computes it.

T tokens, D hidden size, E experts, k of them for a token, F width of an expert, n rows at a time.
All pieces of rows are alike in memory: one of the largest is followed. How the router spreads the
tokens changes how many there are, not what they take.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.memory.elementary import Elementary
from edgetune.memory.expert_updates import Factors
from edgetune.memory.products import Product, unpack
from edgetune.memory.routing import INDEX
from edgetune.memory.sized import Gradient, Sized
from edgetune.network.ops import ExpertUpdates
from edgetune.shape import BlockShape
from edgetune.storage import FLOAT32_BYTES


def shared(ops: Elementary, x: Sized, y: Sized) -> Sized:
    """Return y times a share a token, which is made of x; y and the shares are saved."""
    ledger, size = ops.ledger, x.nbytes
    tokens, narrow = FLOAT32_BYTES * (x.numbers // x.shape[-1]), x.width != FLOAT32_BYTES
    wide = FLOAT32_BYTES * x.numbers
    gate = FLOAT32_BYTES * x.shape[-1] if ops.batch.stored != FLOAT32_BYTES else 0
    wanted = (x.needs, y.needs)
    ledger.transient(wide if narrow else 0, gate, tokens)
    share = ops.new(tokens)
    ledger.transient(size, tokens)

    def back(_: list[Gradient]) -> Sequence[Gradient]:
        ledger.transient(size, 2 * size if narrow else 0, tokens)
        held = ledger.alloc(tokens)
        ledger.transient(2 * tokens)
        ledger.transient(gate, wide, size if narrow else 0)
        x_grad = ops.new(size) if wanted[0] else None
        ledger.transient(tokens)
        y_grad = ops.new(size)
        ledger.free(held)
        return x_grad, y_grad

    return ops.tape.made(y.shape, y.width, (x, y), back, saved=(y, share))


def experts(
    ops: Elementary,
    x: Sized,
    weights: Sized,
    chosen: Sized,
    block: BlockShape,
    updates: ExpertUpdates[Sized],
    *,
    quantized: bool,
) -> Sized:
    """Return the weighted sum of the experts' outputs; its inputs are saved."""
    assert block.experts is not None
    pieces = _Pieces(ops, block, updates, quantized=quantized, width=x.width)
    ledger, wide, narrow = ops.ledger, FLOAT32_BYTES * x.numbers, x.width != FLOAT32_BYTES
    order, sizes = 2 * chosen.nbytes, (x.nbytes, weights.nbytes)
    trained = [part for each in updates.values() for part in (each.a, each.b)]
    wanted = [part.nbytes if part.needs else 0 for part in trained]
    summed = None if narrow else ops.new(wide)
    held = ledger.alloc((wide if narrow else 0) + order // 2)
    ledger.transient(order // 2)
    pieces.forward(weights.shape[0])
    storage = ops.new(x.nbytes) if summed is None else summed
    ledger.free(held)

    def back(_: list[Gradient]) -> Sequence[Gradient]:
        learned = [ops.new(size) if size else None for size in wanted]
        made, tokens = ledger.alloc(wide if narrow else 0), sizes[1]
        x_grad, weights_grad = None if narrow else ops.new(wide), ops.new(tokens)
        held = ledger.alloc(order // 2)
        ledger.transient(order // 2)
        pieces.backward(weights.shape[0])
        ledger.free(held)
        x_grad = ops.new(sizes[0]) if x_grad is None else x_grad
        ledger.free(made)
        return x_grad, weights_grad, *learned

    inputs = (x, weights, *trained)
    saved = (x, weights, chosen)
    return ops.tape.made(x.shape, x.width, inputs, back, storage=storage, saved=saved)


class _Pieces:
    """Some rows of an expert, forward and back.

    Where a stack has an update, A of rank R makes ``low`` (n, R) of what it reads.
    """

    def __init__(
        self, ops: Elementary, block: BlockShape, updates: ExpertUpdates[Sized], *,
        quantized: bool, width: int,
    ) -> None:  # fmt: skip
        assert block.experts is not None
        rule = block.experts
        self.ledger, self.batch, self.rule, self.width = ops.ledger, ops.batch, rule, width
        own = block.expert_linears[: len(rule.projections)]
        self.products = {
            str(linear.role): Product(
                inputs=linear.inputs, outputs=linear.outputs, quantized=quantized
            )
            for linear in own
        }
        self.updates = {
            role: Factors.of(each, rule.number, ops.batch.product) for role, each in updates.items()
        }

    def forward(self, tokens: int) -> None:
        ledger, rows = self.ledger, self.rule.rows(tokens)
        inner, outer = rows * self.rule.size * self.width, rows * self.rule.hidden * self.width
        numbers = ledger.alloc(self._numbers(rows))
        entry = ledger.alloc(outer)
        low = self._low(self.rule.first_stack, rows)
        gates = self._gates(inner)
        if self.rule.clamp is not None:
            ledger.transient(2 * inner)
        active = ledger.alloc(inner)
        ledger.free(gates + low + entry)
        low = self._low("down", rows)
        out = self._times("down", outer)
        ledger.free(low)
        wide = ledger.alloc(self._widened(rows))
        if wide:
            ledger.free(out)
            out = wide
        ledger.free(active)
        ledger.transient(FLOAT32_BYTES * rows)
        ledger.free(out + numbers)

    def backward(self, tokens: int) -> None:
        ledger, rows = self.ledger, self.rule.rows(tokens)
        inner, outer = rows * self.rule.size * self.width, rows * self.rule.hidden * self.width
        numbers = ledger.alloc(self._numbers(rows) + 2 * FLOAT32_BYTES * rows)
        entries = ledger.alloc(2 * outer)
        low = self._low(self.rule.first_stack, rows)
        if self.rule.clamp is not None or not self.rule.gated:
            back = self._ungated_back if self.rule.clamp is None else self._clamped_back
            back(rows, inner, outer)
            ledger.free(entries + low)
            ledger.transient(outer, self._widened(rows))
            ledger.free(numbers)
            return
        gates = self._gates(inner)
        down = self._low_back("down", rows)
        grad = self._times("down", inner)
        active = ledger.alloc(inner)
        ledger.transient(inner, 0 if self.width == FLOAT32_BYTES else 2 * inner)
        self._learn_down(rows, inner)
        ledger.free(down)
        ledger.transient(2 * inner)
        gate_grad = ledger.alloc(inner)
        ledger.free(gates + active)
        first = self._learn_first(rows)
        x_grad = self._times("gate", outer)
        ledger.free(gate_grad)
        again = self._times("up", outer)
        ledger.free(again + grad + entries + low + first)
        ledger.transient(self._widened(rows))
        ledger.free(x_grad + numbers)

    def _ungated_back(self, rows: int, inner: int, outer: int) -> None:
        """Go back without a gate; the gradient of what an expert read is free again."""
        ledger = self.ledger
        up = self._times("up", inner)
        down = self._low_back("down", rows)
        grad = self._times("down", inner)
        active = ledger.alloc(inner)
        ledger.transient(inner, 0 if self.width == FLOAT32_BYTES else 2 * inner)
        self._learn_down(rows, 0)
        ledger.free(down)
        up_grad = ledger.alloc(inner)
        ledger.free(up + active + grad)
        first = self._learn_first(rows)
        ledger.free(self._times("up", outer))
        ledger.free(up_grad + first)

    def _clamped_back(self, rows: int, inner: int, outer: int) -> None:
        """Go back through gpt-oss's gate; the gradient of what an expert read is free again."""
        ledger, narrow = self.ledger, self.width != FLOAT32_BYTES
        gates = self._times("gate_up", 2 * inner)
        down = self._low_back("down", rows)
        grad = self._times("down", inner)
        ledger.transient(3 * inner)
        active = ledger.alloc(inner)
        self._learn_down(rows, 0)
        ledger.free(down)
        ledger.transient(2 * inner if narrow else 0)
        ledger.free(active)
        ledger.transient(FLOAT32_BYTES * rows)
        made = ledger.alloc(2 * inner)
        ledger.transient(3 * inner, inner // self.width)
        ledger.free(gates + grad)
        first = self._learn_first(rows)
        ledger.free(self._times("gate_up", outer))
        ledger.free(made + first)

    def _low(self, stack: str, rows: int) -> int:
        """Multiply rows by A; return the bytes of what it makes and of B, which stay."""
        own = self.updates.get(stack)
        return 0 if own is None else own.ahead(self.ledger, rows)

    def _low_back(self, stack: str, rows: int) -> int:
        """Multiply gradients of rows by B; return the bytes of what it makes and of A."""
        own = self.updates.get(stack)
        return 0 if own is None else own.back(self.ledger, rows)

    def _learn_down(self, rows: int, inner: int) -> None:
        """Add gradients of what updates the last projection, for ``inner`` bytes that it reads."""
        own = self.updates.get("down")
        if own is not None:
            held = self.ledger.alloc(inner)
            own.learn_with_shares(self.ledger, rows)
            self.ledger.free(held)

    def _learn_first(self, rows: int) -> int:
        """Add gradients of what updates the first projections; return the bytes that stay."""
        own = self.updates.get(self.rule.first_stack)
        if own is None:
            return 0
        parts = 2 if self.rule.gated and self.rule.clamp is None else 1
        back = own.back(self.ledger, rows, parts)
        own.learn(self.ledger, parts)
        return back

    def _gates(self, inner: int) -> int:
        """Multiply by the projections that read what comes in; return the bytes of all."""
        if "gate_up" in self.products:
            return self._times("gate_up", 2 * inner)
        if not self.rule.gated:
            return self._times("up", inner)
        return self._times("gate", inner) + self._times("up", inner)

    def _times(self, role: str, made: int) -> int:
        """Multiply, one way or the other; return the bytes of what is made, which stay."""
        product = self.products[role]
        unpack(self.ledger, product, self.batch)
        held = self.ledger.alloc(product.dense(self.batch))
        self.ledger.alloc(made)
        self.ledger.free(held)
        return made

    def _widened(self, rows: int) -> int:
        """Return the bytes of rows in float32, where they are not in it."""
        narrow = self.width != FLOAT32_BYTES
        return FLOAT32_BYTES * rows * self.rule.hidden if narrow else 0

    def _numbers(self, rows: int) -> int:
        """Return the bytes of the numbers of rows, those of the piece before included."""
        return 3 * INDEX * rows
