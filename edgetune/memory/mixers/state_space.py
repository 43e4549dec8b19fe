"""Bytes of Mamba-2's mixer, as the torch engine does it: a few pieces of the rows at a time.

Its functions are followed line by line, for the largest span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from edgetune.memory.elementary import Elementary
from edgetune.memory.ledger import Ledger
from edgetune.memory.mixers import INDEX, NUMBER
from edgetune.memory.sized import Gradient, Sized, outside
from edgetune.mixer import PIECE, SPAN
from edgetune.network.mixers.state_space import StateSpace
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """Bytes of what is held of a span, in float32."""

    window: int
    """What is convolved, with the tokens before."""
    convolved: int
    values: int
    keys: int
    numbers: int
    """A number for each token and head."""
    scores: int
    pairs: int
    """A number for each pair of tokens of a piece and head."""
    states: int
    """Those of all pieces."""
    state: int
    later: int
    hidden: int
    """A bit, in a byte, for each pair of tokens where there are documents."""
    same: int
    """Which tokens belong to the document of another."""
    apart: bool
    """Whether groups are brought together by copies."""

    @classmethod
    def of(cls, mixer: StateSpace, rows: int, tokens: int, *, documents: bool) -> Arrays:
        """Return those of a span of so many tokens."""
        pieces = ceil(tokens / PIECE)
        piece = tokens if pieces == 1 else PIECE
        one, count = FLOAT32_BYTES * rows, pieces * piece
        state = one * mixer.heads * mixer.key_dim * mixer.value_dim
        pairs = rows * pieces * piece**2
        return cls(
            window=one * (count + mixer.taps - 1) * mixer.channels,
            convolved=one * count * mixer.channels,
            values=one * count * mixer.values,
            keys=one * count * mixer.keys,
            numbers=one * count * mixer.heads,
            scores=FLOAT32_BYTES * pairs * mixer.groups,
            pairs=FLOAT32_BYTES * pairs * mixer.heads,
            states=pieces * state,
            state=state,
            later=piece**2,
            hidden=pairs * (mixer.groups + 1) if documents else 0,
            same=rows * count * (NUMBER + 3) + 3 * INDEX * count if documents else 0,
            apart=mixer.groups > 1,
        )

    @property
    def tokens(self) -> int:
        """What the recurrence reads."""
        return self.values + (2 * self.keys if self.apart else 0) + self.numbers

    @property
    def left(self) -> int:
        """States on their way from piece to piece."""
        return min(self.states, 2 * self.state)

    @property
    def masked(self) -> int:
        """Taps for each token, where there are documents."""
        return self.convolved + self.same if self.hidden else 0


def mixed(
    ops: Elementary, mixer: StateSpace, inputs: Sequence[Sized], own: Mapping[str, Sized]
) -> Sized:
    """Return what is read (B, S, H V) of x and steps; the inputs alone are saved."""
    return mixed_in_tile(ops, mixer, inputs, own, None, 0)[0]


def mixed_in_tile(
    ops: Elementary, mixer: StateSpace, inputs: Sequence[Sized], own: Mapping[str, Sized],
    state: Sized | None, skipped: int,
) -> tuple[Sized, Sized]:  # fmt: skip
    """Return the same, and the state behind it for that before."""
    inputs = (*inputs, *own.values())
    x, ledger = inputs[0], ops.ledger
    rows, whole, _ = x.shape
    positions = whole - skipped
    several = ops.batch.documents > 1
    arrays = Arrays.of(mixer, rows, min(SPAN, positions), documents=several)
    rest = Arrays.of(mixer, rows, (positions - 1) % SPAN + 1, documents=several)
    standing = NUMBER * rows * (skipped + ceil(positions / PIECE) * PIECE) if several else 0
    standing += 0 if inputs[2].width == FLOAT32_BYTES else FLOAT32_BYTES * inputs[2].numbers
    standing += FLOAT32_BYTES * (inputs[2].numbers + mixer.channels) if mixer.multipliers else 0
    standing += arrays.state if state is None else 0
    sizes = [each.nbytes for each in inputs]
    of_own = [FLOAT32_BYTES * each.numbers for each in own.values()]
    every = inputs if state is None else (*inputs, state)
    wanted = [each.needs for each in every]
    narrow, width = x.width != FLOAT32_BYTES, x.width
    wide = FLOAT32_BYTES * x.numbers
    spans = ceil(positions / SPAN)

    def back(arrived: list[Gradient]) -> Sequence[Gradient]:
        held = ledger.alloc(standing)
        for _span in range(spans - 1):
            _advance(ledger, arrays, reads=False)
            held += ledger.alloc(arrays.state)
        small = [ops.new(size) for size in (sizes[1], *of_own)]
        found = ledger.alloc(wide)
        held += ledger.alloc(0 if arrived[1] else arrays.state)
        _back(ledger, rest, narrow=narrow)
        if spans > 1:  # whose states are one less by then
            ledger.free(arrays.state)
            _back(ledger, arrays, narrow=narrow)
            held -= arrays.state
        ledger.free(held)
        of_state = None if state is None else arrived[1] or ops.new(arrays.state)
        grad = ops.new(sizes[0]) if narrow else None
        ledger.free(found)
        grad = grad or ops.new(sizes[0])
        made: list[Gradient] = [grad, *small, of_state][: len(every)]
        return [each if want else None for each, want in zip(made, wanted, strict=True)]

    needs = any(wanted)
    out = outside((rows, whole, mixer.values), width, needs=needs)
    out = replace(out, storage=ops.new(out.nbytes))
    held = ledger.alloc(standing)
    _advance(ledger, arrays, reads=True)
    ledger.free(held)
    behind = outside((rows * mixer.state,), FLOAT32_BYTES, needs=needs)
    behind = replace(behind, storage=ops.new(arrays.state))
    if needs:
        ops.tape.record(every, (out, behind), every, back)
    return out, behind


def _advance(ledger: Ledger, arrays: Arrays, *, reads: bool) -> None:
    """Follow ``Span.advance``, or ``Span.state_behind``, whose state before is there."""
    ledger.transient(arrays.window, arrays.convolved, arrays.masked)
    held = ledger.alloc(arrays.convolved)
    _tokens(ledger, arrays)
    held += ledger.alloc(arrays.tokens + arrays.hidden)
    factors = ledger.alloc(2 * arrays.numbers)
    _states(ledger, arrays)
    held += ledger.alloc(arrays.state)
    if reads:
        ledger.transient(arrays.states, arrays.values)
        held += ledger.alloc(arrays.values)
    ledger.free(factors)
    if reads:
        ledger.transient(arrays.pairs, arrays.later, arrays.scores)
        ledger.transient(arrays.pairs, 2 * arrays.values)
    ledger.free(held)


def _tokens(ledger: Ledger, arrays: Arrays) -> None:
    """Follow ``Span._steps`` and ``Span._tokens``: nothing of it stays here."""
    ledger.transient(3 * arrays.numbers)
    steps = ledger.alloc(arrays.numbers)
    ledger.transient(2 * arrays.values, arrays.numbers)
    made = ledger.alloc(arrays.values)
    ledger.transient(3 * arrays.numbers)
    made += ledger.alloc(arrays.numbers)
    ledger.transient(2 * arrays.keys if arrays.apart else 0)
    ledger.free(steps + made)


def _states(ledger: Ledger, arrays: Arrays) -> None:
    """Follow the states of the pieces: nothing of them stays here."""
    ledger.transient(arrays.values, arrays.states)
    ledger.transient(arrays.states, arrays.left)


def _back(ledger: Ledger, arrays: Arrays, *, narrow: bool) -> None:
    """Follow ``Span.go_back``."""
    convolved, values, numbers = arrays.convolved, arrays.values, arrays.numbers
    ledger.transient(arrays.window, convolved, arrays.masked)
    held = ledger.alloc(convolved)
    ledger.transient(3 * numbers)
    held += ledger.alloc(numbers)
    ledger.transient(3 * convolved)
    slope = ledger.alloc(convolved)
    ledger.transient(2 * values, values if narrow else 0)
    read = ledger.alloc(values)  # the part of the gradient
    _tokens(ledger, arrays)
    tokens = ledger.alloc(arrays.tokens + arrays.hidden)
    grads = _back_within(ledger, arrays)
    _back_between(ledger, arrays)
    grads += ledger.alloc(arrays.state)
    ledger.free(tokens)
    ledger.transient(values, numbers)
    of_steps = ledger.alloc(numbers)
    ledger.free(read)
    ledger.transient(6 * numbers)
    ledger.free(grads + slope)
    ledger.transient(arrays.window, convolved, 2 * arrays.masked)
    ledger.free(held + of_steps)


def _back_within(ledger: Ledger, arrays: Arrays) -> int:
    """Follow the way back through pairs of tokens; return the bytes of gradients, which stay."""
    pairs, values, keys, numbers = arrays.pairs, arrays.values, arrays.keys, arrays.numbers
    ledger.transient(pairs, arrays.later)
    held = ledger.alloc(pairs)
    ledger.transient(pairs, 2 * values)
    scores = ledger.alloc(pairs)
    ledger.transient(arrays.scores)
    ledger.transient(2 * values)
    made = ledger.alloc(values)
    ledger.free(held)
    of_scores = ledger.alloc(arrays.scores)
    ledger.transient(arrays.scores)
    ledger.transient(2 * numbers)
    made += ledger.alloc(numbers)
    ledger.free(scores)
    made += ledger.alloc(2 * keys)
    ledger.free(of_scores)
    return made


def _back_between(ledger: Ledger, arrays: Arrays) -> None:
    """Follow the way back through the states: nothing of it stays here."""
    values, states, numbers = arrays.values, arrays.states, arrays.numbers
    factors = ledger.alloc(2 * numbers + values)  # and what comes from the state
    ledger.transient(states, arrays.left)
    behind = ledger.alloc(states + arrays.state)
    ledger.transient(2 * values)
    late = ledger.alloc(numbers)
    ledger.transient(values)
    _states(ledger, arrays)
    before = ledger.alloc(states)
    ledger.transient(values, numbers)
    ledger.free(before + late + behind + factors)
