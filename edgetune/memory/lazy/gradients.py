"""Gradients of graphs, as MLX's ``vjp`` and ``custom_function`` put them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgetune.memory.lazy.elementwise import add
from edgetune.memory.lazy.graph import Array, Grads, Operation, Wanted
from edgetune.memory.lazy.views import copied, depends, stopped, zeros

Function = Callable[..., Array]

CustomBack = Callable[[list[Array], Array, Array, Wanted], Sequence[Array | None]]
"""From inputs, the output's gradient and the output to the gradients that are wanted."""


def vjp(
    function: Callable[..., Array | tuple[Array, ...]],
    inputs: Sequence[Array],
    grads: Sequence[Array],
) -> list[Array]:
    """Return the gradients of a function's inputs, for those of its outputs."""
    found = some_vjp(function, inputs, grads, [True] * len(inputs))
    return [grad for grad in found if grad is not None]


def some_vjp(
    function: Callable[..., Array | tuple[Array, ...]],
    inputs: Sequence[Array],
    grads: Sequence[Array],
    wanted: Wanted,
) -> Grads:
    """Return the gradients that are wanted; the others' operations would never be computed."""
    traced = [copied(x) for x in inputs]
    made = function(*traced)
    outputs = made if isinstance(made, tuple) else (made,)
    needed = {id(x) for x, want in zip(traced, wanted, strict=True) if want}
    tape = _tape(outputs, traced[0].number, needed)
    found = dict(zip(map(id, outputs), grads, strict=True))
    for operation in reversed(tape):
        own: Grads = [found.pop(id(out), None) for out in operation.outputs]
        if all(grad is None for grad in own):
            continue
        asked = [id(x) in needed for x in operation.inputs]
        assert operation.back is not None
        for x, want, grad in zip(
            operation.inputs, asked, operation.back(operation, own, asked), strict=True
        ):
            if want and grad is not None:
                before = found.get(id(x))
                found[id(x)] = grad if before is None else add(before, grad)
    return [
        (found.get(id(x)) or zeros(x.shape, x.width)) if want else None
        for x, want in zip(traced, wanted, strict=True)
    ]


def _tape(outputs: Sequence[Array], first: int, needed: set[int]) -> list[Operation]:
    """Return the operations between inputs and outputs, in order; mark what they make as needed.

    Arrays made before the ``first`` traced one do not depend on it.
    """
    tape: list[Operation] = []
    seen: set[int] = set()
    stack: list[tuple[Operation, int]] = []

    def enter(x: Array) -> None:
        operation = x.operation
        if operation is not None and x.number >= first and id(operation) not in seen:
            seen.add(id(operation))
            if operation.back is not None and id(x) not in needed:
                stack.append((operation, 0))

    for output in outputs:
        enter(output)
        while stack:
            operation, at = stack.pop()
            if at < len(operation.inputs):
                stack.append((operation, at + 1))
                enter(operation.inputs[at])
                continue
            if any(id(x) in needed for x in operation.inputs):
                tape.append(operation)
                needed.update(map(id, operation.outputs))
    return tape


def custom(function: Function, back: CustomBack, *inputs: Array) -> Array:
    """Return a function's value, whose way back is given."""
    out = stopped(function(*inputs))
    count = len(inputs)

    def call(operation: Operation, grads: Grads, wanted: Wanted) -> Grads:
        grad = grads[0]
        assert grad is not None, "an output without a gradient is not gone back through"
        return [*back(list(operation.inputs[:count]), grad, operation.outputs[0], wanted), None]

    operation = Operation((*inputs, out), back=call, views=(count,))
    return Array(out.shape, out.width, operation, out)


def custom_all(
    function: Callable[..., Sequence[Array]],
    back: Callable[[list[Array], Grads, Sequence[Array], Wanted], Sequence[Array | None]],
    *inputs: Array,
) -> list[Array]:
    """Return the values of a function that makes several, of which ``back`` gets all."""
    made, count = [stopped(x) for x in function(*inputs)], len(inputs)

    def call(operation: Operation, grads: Grads, wanted: Wanted) -> Grads:
        found = back(list(operation.inputs[:count]), grads, operation.outputs, wanted)
        pairs = zip(found, wanted, strict=False)
        return [*(each if want else None for each, want in pairs), *[None] * len(made)]

    operation = Operation((*inputs, *made), back=call, views=range(count, count + len(made)))
    return [Array(x.shape, x.width, operation, x) for x in made]


def recomputed(function: Function, *inputs: Array) -> Array:
    """Return a function's value; its way back starts from the inputs, after the gradient."""

    def back(primals: list[Array], grad: Array, _: Array, wanted: Wanted) -> Grads:
        return some_vjp(function, depends(primals, [grad]), [grad], wanted[: len(primals)])

    return custom(function, back, *inputs)
