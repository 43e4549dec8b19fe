"""Evaluating a graph as MLX does: in its order, a value freed at its last use.

MLX walks from what is asked for to what it is made of, breadth first up to a width, and computes
in the reverse of that order (``eval_impl`` in ``transforms.cpp`` of MLX 0.32). An operation lets go
of its inputs when it is queued; their memory is free when it has run. MLX counts what it queues by
tens and, at its memory limit, waits for all that is counted: what the last ten tasks let go of may
still be there, and gives its place to nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from edgetune.memory.lazy.graph import Array, Buffer, Operation
from edgetune.memory.ledger import Ledger

WIDTH = 20
"""Operations between which MLX goes on breadth first (``MLX_BFS_MAX_WIDTH``)."""

DONATION = 16384
"""Bytes that a buffer may have more than what takes its place."""

AHEAD = 10
"""Tasks that MLX counts as one (``DISPATCHES_PER_TASK``)."""

_visits = 0


def _visit() -> int:
    """Return a number that no walk over a graph had before."""
    global _visits  # noqa: PLW0603
    _visits += 1
    return _visits


class Evaluation:
    """The arrays that are held, and what is evaluated of them, counted in a ledger.

    A graph may be evaluated several times: each begins with nothing computed.
    """

    def __init__(self, ledger: Ledger, held: Iterable[Array], *, ahead: int = AHEAD) -> None:
        """Hold arrays; ``ahead`` tasks may be queued before memory is known to be free."""
        self.ledger, self.ahead, self._clock = ledger, ahead, 0
        self._running: deque[tuple[int, list[Buffer]]] = deque()
        self._count(list(held))

    def evaluate(self, array: Array) -> None:
        """Compute an array and what it needs."""
        operation = array.operation
        if operation is not None and not operation.done:
            for each in _in_order(operation):
                self._run(each)

    def drop(self, array: Array) -> None:
        """Hold an array no longer; nothing runs."""
        array.users -= 1
        if not array.users and array.buffer is not None:
            array.buffer.users -= 1
            self._free(array.buffer)

    def settle(self) -> None:
        """Wait for all that runs."""
        while self._running:
            self._finish(self._running.popleft()[1])

    def _count(self, held: list[Array]) -> None:
        """Count for each array who refers to it: those who hold it and operations to come."""
        visit, waiting = _visit(), held[:]
        while waiting:
            array = waiting.pop()
            operation = array.operation
            if operation is None:
                continue
            if operation.seen != visit:
                operation.seen, operation.done = visit, False
                for out in operation.outputs:
                    out.users, out.buffer = 0, None
                waiting.extend(operation.inputs)
            array.users += 1

    def _run(self, operation: Operation) -> None:
        inputs, running, place = operation.inputs, [], None
        if operation.views is None:
            out = operation.outputs[0]
            place = out.buffer = self._place(operation, out)
            place.users += 1
            if operation.spare:
                running.append(self._new(operation.spare))
        else:
            for out, view in zip(operation.outputs, operation.views, strict=True):
                buffer = inputs[view].buffer
                assert buffer is not None, "an input is computed before what it is an input of"
                out.buffer = buffer
                buffer.users += 1
            place = operation.outputs[0].buffer  # a view of it holds nothing more
        operation.done = True
        for each in inputs:
            if each.operation is None:
                continue
            buffer = each.buffer
            assert buffer is not None, "an input is computed before what it is an input of"
            if buffer is not place and buffer.nbytes:
                running.append(buffer)
            each.users -= 1
            if not each.users:
                buffer.users -= 1
        for out in operation.outputs:
            if not out.users and out.buffer is not None:
                out.buffer.users -= 1
                running.append(out.buffer)
        for buffer in running:
            buffer.held += 1
        self._clock += operation.tasks
        if running:
            self._running.append((self._clock, running))
        while self._running and self._running[0][0] <= self._clock - self.ahead:
            self._finish(self._running.popleft()[1])

    def _place(self, operation: Operation, out: Array) -> Buffer:
        """Return the buffer of an output: that of an input which nobody else needs, or a new one."""
        for donor in operation.donors:
            each = operation.inputs[donor]
            if each.users != 1 or each.width != out.width:
                continue
            buffer = each.buffer
            assert buffer is not None
            if buffer.users == 1 and not buffer.held and buffer.nbytes <= out.nbytes + DONATION:
                return buffer
        return self._new(operation.nbytes)

    def _new(self, nbytes: int) -> Buffer:
        self.ledger.alloc(nbytes)
        return Buffer(nbytes)

    def _finish(self, buffers: list[Buffer]) -> None:
        """Free what nobody needs of the buffers that an operation held while it ran."""
        for buffer in buffers:
            buffer.held -= 1
            self._free(buffer)

    def _free(self, buffer: Buffer) -> None:
        if not buffer.users and not buffer.held:
            self.ledger.free(buffer.nbytes)


def _in_order(last: Operation) -> list[Operation]:
    """Return what is to be computed for an operation, in MLX's order."""
    _count_uses(last)
    tape, at = [last], 0
    stack: list[tuple[Operation, int]] = []
    while at < len(tape) or stack:
        if at >= len(tape):
            operation, first = stack.pop()
        else:
            operation, first = tape[at], 0
            at += 1
        for index in range(first, len(operation.inputs)):
            other = operation.inputs[index].operation
            if other is None or other.done:
                continue
            if len(tape) - at >= WIDTH:
                stack.append((operation, index))
                break
            other.uses -= 1
            if not other.uses:
                tape.append(other)
    tape.reverse()
    return tape


def _count_uses(last: Operation) -> None:
    """Count for each operation to be computed how often its outputs are used for ``last``."""
    visit, waiting = _visit(), [last]
    while waiting:
        for each in waiting.pop().inputs:
            other = each.operation
            if other is None or other.done:
                continue
            if other.walked != visit:
                other.walked, other.uses = visit, 0
                waiting.append(other)
            other.uses += 1
