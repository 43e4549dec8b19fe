"""Gated DeltaNet's mixer as the MLX engine writes it: in pieces of tokens, in float32.

B rows, S positions, H heads of values, G of keys, T tokens of a piece, K channels of a key, V of a
value, C channels that are convolved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from edgetune.memory.lazy.arrays import counted, made_of, matmul, summed_along
from edgetune.memory.lazy.convolution import convolved
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    compared,
    exp,
    multiply,
    negative,
    plus,
    rsqrt,
    sigmoid,
    softplus,
    square,
    subtract,
    times,
    where,
)
from edgetune.memory.lazy.gradients import custom, vjp
from edgetune.memory.lazy.graph import Array, Grads, Wanted
from edgetune.memory.lazy.views import (
    broadcast,
    concatenate,
    cut,
    depends,
    expand,
    pad,
    reshape,
    split,
    swapaxes,
    total,
    transpose,
    updated,
    zeros,
)
from edgetune.mixer import PIECE, GatedDelta
from edgetune.storage import FLOAT32_BYTES

FOLLOWED = 2
"""Pieces at the beginning of a row, and at its end, that are followed one by one."""

Piece = Callable[..., tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one piece, or of several that are not followed."""

    start: int
    stop: int
    pieces: int


def gated_delta(
    x: Array, b: Array, a: Array, own: Sequence[Array], mixer: GatedDelta, *, documents: bool
) -> Array:
    """Return what is read (B, S, H V) of x (B, S, C), b and a (B, S, H)."""
    piece = partial(_piece, mixer=mixer, documents=documents)

    def back(primals: list[Array], grad: Array, _: Array, wanted: Wanted) -> Grads:
        grads = _backward(depends(primals, [grad]), grad, piece, mixer)
        return [each if want else None for each, want in zip(grads, wanted, strict=False)]

    return custom(partial(_forward, piece=piece, mixer=mixer), back, x, b, a, *own)


def _forward(x: Array, b: Array, a: Array, *own: Array, piece: Piece, mixer: GatedDelta) -> Array:
    outputs: list[Array] = []
    state = _empty_state(x, mixer)
    for span in _spans(x.shape[1]):
        parts = depends(_cut(x, b, a, span, mixer), [state])  # one piece at a time
        out, state = _piece_of(span, piece, mixer, parts, state, own)
        outputs.append(out)
    return concatenate(outputs, 1)


def _backward(inputs: Sequence[Array], grad: Array, piece: Piece, mixer: GatedDelta) -> list[Array]:
    """Return the gradients of x, b, a and the mixer's own tensors, one piece after the other."""
    x, b, a, *own = inputs
    spans, states = _spans(x.shape[1]), [_empty_state(x, mixer)]
    between: list[Array] = []
    for span in spans[:-1]:
        parts = depends(_cut(x, b, a, span, mixer), [states[-1]])
        if span.pieces > 1:
            shape = (span.pieces - 1, *states[0].shape)
            between.append(made_of((*parts, states[-1]), shape, FLOAT32_BYTES))
        states.append(_piece_of(span, piece, mixer, parts, states[-1], own)[1])
    state_grad = zeros(states[0].shape, FLOAT32_BYTES)
    early: Array | None = None
    of_spans: list[list[Array]] = []
    own_grads = [zeros(each.shape, FLOAT32_BYTES) for each in own]
    for span in reversed(spans):
        parts = [*_cut(x, b, a, span, mixer), states.pop()]
        before = parts[0].shape[1] - (span.stop - span.start)
        given = [cut(grad, 1, span.start, span.stop), state_grad]
        parts = depends(parts, [state_grad, *own_grads])  # one piece at a time
        if span.pieces > 1:
            inside = (*parts, *given, *between)
            found = [*(made_of(inside, part.shape, part.width) for part in parts), *own_grads]
        else:
            found = vjp(partial(piece, start=span.start), [*parts, *own], given)
        early, x_grad = _with_early(early, found[0], before)
        of_spans.append([x_grad, found[1], found[2]])
        state_grad = found[3]
        own_grads = [
            add(sums, cast(part, FLOAT32_BYTES))
            for sums, part in zip(own_grads, found[4:], strict=True)
        ]
    of_tokens = [concatenate([each[i] for each in reversed(of_spans)], 1) for i in range(3)]
    return [*of_tokens, *(cast(g, each.width) for g, each in zip(own_grads, own, strict=True))]


def _piece_of(
    span: Span, piece: Piece, mixer: GatedDelta, parts: Sequence[Array], state: Array,
    own: Sequence[Array],
) -> tuple[Array, Array]:  # fmt: skip
    """Return what a span reads, and the state behind it; of several pieces without their inside."""
    if span.pieces == 1:
        return piece(*parts, state, *own, start=span.start)
    x, inputs = parts[0], (*parts, state)
    out = made_of(inputs, (x.shape[0], span.stop - span.start, mixer.values), x.width)
    return out, made_of(inputs, state.shape, FLOAT32_BYTES)


def _with_early(early: Array | None, grad: Array, before: int) -> tuple[Array, Array]:
    """Return the gradient of the tokens before a piece, and that of the piece."""
    own = cut(grad, 1, before, grad.shape[1])
    if early is not None and early.shape[1]:
        own = updated(own, early, adds=True)
    return cut(grad, 1, 0, before), own


def _spans(positions: int) -> list[Span]:
    """Return the pieces; what lies between the first and the last ones is one span."""
    edges = [*range(0, positions, PIECE), positions]
    pieces = [Span(start, stop, 1) for start, stop in pairwise(edges)]
    if len(pieces) <= 2 * FOLLOWED + 1:
        return pieces
    first, last = pieces[:FOLLOWED], pieces[-FOLLOWED:]
    return [*first, Span(first[-1].stop, last[0].start, len(pieces) - 2 * FOLLOWED), *last]


def _cut(x: Array, b: Array, a: Array, span: Span, mixer: GatedDelta) -> list[Array]:
    first = max(0, span.start - mixer.taps + 1)
    return [cut(x, 1, first, span.stop), *(cut(each, 1, span.start, span.stop) for each in (b, a))]


def _piece(
    x: Array, b: Array, a: Array, state: Array, conv: Array, a_log: Array, dt_bias: Array,
    *, mixer: GatedDelta, documents: bool, start: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Return what a piece reads (B, T, H V), and the state behind it."""
    missing = max(0, mixer.taps - 1 - start)
    return _rule(pad(x, 1, missing), b, a, state, conv, a_log, dt_bias, mixer, documents=documents)


def _rule(
    window: Array, b: Array, a: Array, state: Array, conv: Array, a_log: Array, dt_bias: Array,
    mixer: GatedDelta, *, documents: bool,
) -> tuple[Array, Array]:  # fmt: skip
    kept, (rows, count, _) = mixer.taps - 1, b.shape
    y = convolved(cast(window, FLOAT32_BYTES), conv, None, documents=documents)
    y = cut(y, 1, kept, y.shape[1])
    y = multiply(y, sigmoid(y))
    q, k, v = split(y, (mixer.keys, mixer.keys, y.shape[-1] - 2 * mixer.keys))
    q = times(expand(_unit(q, mixer), 2))
    k = expand(_unit(k, mixer), 2)
    shared = mixer.value_heads // mixer.key_heads
    v = reshape(v, (rows, count, mixer.key_heads, shared, mixer.value_dim))
    v = transpose(v, (0, 2, 3, 1, 4))
    beta = _by_head(sigmoid(cast(b, FLOAT32_BYTES)), mixer)
    speed = negative(exp(cast(a_log, FLOAT32_BYTES)))
    rate = multiply(speed, softplus(add(cast(a, FLOAT32_BYTES), cast(dt_bias, FLOAT32_BYTES))))
    decay = summed_along(_by_head(rate, mixer), 3)
    pairs, start, end, through = _factors(decay, documents=documents)
    corrected = multiply(beta, subtract(v, multiply(start, matmul(k, state))))
    system = _lower(multiply(multiply(matmul(k, swapaxes(k, -1, -2)), pairs), beta))
    new = _solved(system, corrected)
    out = add(
        multiply(start, matmul(q, state)),
        matmul(multiply(matmul(q, swapaxes(k, -1, -2)), pairs), new),
    )
    behind = add(multiply(through, state), matmul(swapaxes(multiply(k, end), -1, -2), new))
    out = reshape(transpose(out, (0, 3, 1, 2, 4)), (rows, count, mixer.values))
    return cast(out, window.width), behind


def _factors(decay: Array, *, documents: bool) -> tuple[Array, Array, Array, Array]:
    count = decay.shape[3]
    last = cut(decay, 3, count - 1, count)
    apart = subtract(decay, swapaxes(decay, -1, -2))
    seen = counted((count, count), 1)
    start, end, through = exp(decay), exp(subtract(last, decay)), exp(last)
    if documents:
        rows = decay.shape[0]
        own = compared(counted((rows, 1, 1, count, count)))
        seen = multiply(seen, own)
        start = where(compared(counted((rows, 1, 1, count, 1))), start)
        end = where(compared(counted((rows, 1, 1, count, 1))), end)
        through = where(compared(counted((rows, 1, 1, 1, 1))), through)
    return exp(where(seen, apart)), start, end, through


def _lower(x: Array) -> Array:
    """Return the triangle below the diagonal."""
    return where(counted(x.shape[-2:], 1), x)


def _solved(system: Array, right: Array) -> Array:
    """Return x of ``(1 + system) x = right``."""

    def back(primals: list[Array], grad: Array, solved: Array, wanted: Wanted) -> Grads:
        right_grad = matmul(swapaxes(_inverse(primals[0]), -1, -2), grad)
        product = matmul(negative(right_grad), swapaxes(solved, -1, -2))
        return [_lower(product) if wanted[0] else None, right_grad]

    return custom(lambda system, right: matmul(_inverse(system), right), back, system, right)


def _inverse(system: Array) -> Array:
    count, size = system.shape[-1], 1
    inverse = broadcast(counted((count, count)), system.shape)
    while size < count:
        quarter = counted((count, count), 1)
        inverse = subtract(inverse, matmul(matmul(inverse, where(quarter, system)), inverse))
        size *= 2
    return inverse


def _unit(x: Array, mixer: GatedDelta) -> Array:
    x = swapaxes(reshape(x, (*x.shape[:2], mixer.key_heads, mixer.key_dim)), 1, 2)
    return multiply(x, rsqrt(plus(total(square(x), (-1,)))))


def _by_head(x: Array, mixer: GatedDelta) -> Array:
    shared = mixer.value_heads // mixer.key_heads
    by_head = reshape(x, (*x.shape[:2], mixer.key_heads, shared))
    return expand(transpose(by_head, (0, 2, 3, 1)), 4)


def _empty_state(x: Array, mixer: GatedDelta) -> Array:
    shared = mixer.value_heads // mixer.key_heads
    shape = (x.shape[0], mixer.key_heads, shared, mixer.key_dim, mixer.value_dim)
    return zeros(shape, FLOAT32_BYTES)
