"""Bytes of Gated DeltaNet's mixer, as the torch engine does it: piece by piece of the rows.

Its functions are followed line by line, for the largest piece. N heads of values in all rows, T
tokens of a piece, K channels of a key, V of a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from edgetune.memory.elementary import Elementary
from edgetune.memory.ledger import Ledger
from edgetune.memory.mixers import INDEX, NUMBER
from edgetune.memory.sized import Gradient, Sized, outside
from edgetune.mixer import PIECE
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """Bytes of what is held of a piece, in float32."""

    window: int
    """What is convolved, with the tokens before."""
    convolved: int
    own_keys: int
    """Keys before each head of values has its own."""
    lengths: int
    keys: int
    values: int
    numbers: int
    """A number for each token and head."""
    pairs: int
    hidden: int
    """A bit, in a byte, for each pair of tokens and head where there are documents."""
    state: int
    heads: int
    """A number for each head."""
    later: int
    same: int
    """Which tokens belong to the document of another."""

    @classmethod
    def of(cls, mixer: GatedDelta, rows: int, count: int, *, documents: bool) -> Arrays:
        """Return those of a piece of so many tokens."""
        one, heads = FLOAT32_BYTES * rows, FLOAT32_BYTES * rows * mixer.value_heads
        return cls(
            window=one * (count + mixer.taps - 1) * mixer.channels,
            convolved=one * count * mixer.channels,
            own_keys=one * count * mixer.keys,
            lengths=one * count * mixer.key_heads,
            keys=heads * count * mixer.key_dim,
            values=heads * count * mixer.value_dim,
            numbers=heads * count,
            pairs=heads * count**2,
            hidden=heads // FLOAT32_BYTES * (count + 1) ** 2 if documents else 0,
            state=heads * mixer.key_dim * mixer.value_dim,
            heads=heads,
            later=count**2,
            same=rows * count * (NUMBER + 3) + 3 * INDEX * count if documents else 0,
        )

    @property
    def tokens(self) -> int:
        """What the rule reads."""
        return 2 * self.keys + self.values + 2 * self.numbers

    @property
    def factors(self) -> int:
        """By how much decays what is read."""
        return self.pairs + 2 * self.numbers + self.heads

    @property
    def masked(self) -> int:
        """Taps for each token, where there are documents."""
        return self.convolved + self.same if self.hidden else 0


def mixed(
    ops: Elementary, mixer: GatedDelta, inputs: Sequence[Sized], own: Mapping[str, Sized]
) -> Sized:
    """Return what is read (B, S, H V) of x, b and a; the inputs alone are saved."""
    return mixed_in_tile(ops, mixer, inputs, own, None, 0)[0]


def mixed_in_tile(
    ops: Elementary, mixer: GatedDelta, inputs: Sequence[Sized], own: Mapping[str, Sized],
    state: Sized | None, skipped: int,
) -> tuple[Sized, Sized]:  # fmt: skip
    """Return the same, and the state behind it for that before."""
    inputs = (*inputs, *own.values())
    x, ledger = inputs[0], ops.ledger
    rows, whole, _ = x.shape
    positions = whole - skipped
    several = ops.batch.documents > 1
    arrays = Arrays.of(mixer, rows, min(PIECE, positions), documents=several)
    rest = Arrays.of(mixer, rows, (positions - 1) % PIECE + 1, documents=several)
    standing = NUMBER * rows * whole if several else 0
    standing += 0 if inputs[3].width == FLOAT32_BYTES else FLOAT32_BYTES * inputs[3].numbers
    standing += arrays.state if state is None else 0
    sizes = [each.nbytes for each in inputs]
    of_own = [FLOAT32_BYTES * each.numbers for each in own.values()]
    every = inputs if state is None else (*inputs, state)
    wanted = [each.needs for each in every]
    narrow, width = x.width != FLOAT32_BYTES, x.width
    wide = FLOAT32_BYTES * x.numbers
    pieces = ceil(positions / PIECE)

    def back(arrived: list[Gradient]) -> Sequence[Gradient]:
        held = ledger.alloc(standing)
        for _piece in range(pieces - 1):
            _advance(ledger, arrays, reads=False)
            held += ledger.alloc(arrays.state)
        small = [ops.new(size) for size in (*sizes[1:3], *of_own)]
        found = ledger.alloc(wide)
        held += ledger.alloc(0 if arrived[1] else arrays.state)
        _back(ledger, rest)
        if pieces > 1:  # whose states are one less by then
            ledger.free(arrays.state)
            _back(ledger, arrays)
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
    """Follow ``delta_rule.advance`` of a piece, whose state before is there."""
    _tokens(ledger, arrays)
    held = ledger.alloc(arrays.tokens + arrays.hidden)
    _corrections(ledger, arrays)
    held += ledger.alloc(arrays.factors + arrays.values)
    if reads:
        held += ledger.alloc(arrays.values)
        ledger.transient(arrays.pairs)
    ledger.transient(arrays.keys, arrays.state)
    ledger.free(held)


def _tokens(ledger: Ledger, arrays: Arrays) -> None:
    """Follow ``Piece.tokens``: nothing of it stays here."""
    ledger.transient(arrays.window, arrays.convolved, arrays.masked)
    held = ledger.alloc(arrays.convolved + arrays.numbers)
    ledger.transient(2 * arrays.numbers, 2 * arrays.heads)
    held += ledger.alloc(arrays.numbers)
    for _ in range(2):
        ledger.transient(arrays.own_keys, arrays.lengths)
        ledger.transient(arrays.lengths, arrays.keys, arrays.numbers)
        held += ledger.alloc(arrays.keys)
    ledger.transient(arrays.values)
    ledger.free(held)


def _corrections(ledger: Ledger, arrays: Arrays) -> None:
    """Follow the factors and the corrections: nothing of them stays here."""
    ledger.transient(arrays.pairs, arrays.later)
    held = ledger.alloc(arrays.factors)
    ledger.transient(2 * arrays.values)
    ledger.transient(2 * arrays.values, arrays.pairs)
    ledger.free(held)


def _back(ledger: Ledger, arrays: Arrays) -> None:
    """Follow ``delta_rule.go_back`` and ``Piece.go_back`` of a piece."""
    pairs, keys, values, numbers = arrays.pairs, arrays.keys, arrays.values, arrays.numbers
    held = ledger.alloc(values)  # the part of the gradient
    _tokens(ledger, arrays)
    ledger.alloc(arrays.tokens + arrays.hidden)
    _corrections(ledger, arrays)
    ledger.alloc(arrays.factors + values)  # and what each token added
    ledger.transient(3 * pairs, keys, 2 * values)
    solved = ledger.alloc(values)
    ledger.transient(5 * pairs, 2 * numbers)
    ledger.transient(5 * pairs, 3 * numbers)
    sums = ledger.alloc(2 * numbers)
    ledger.transient(2 * pairs, 2 * keys)
    found = ledger.alloc(2 * keys)
    ledger.transient(keys, numbers)
    late = ledger.alloc(numbers)
    heard = ledger.alloc(values)
    ledger.transient(2 * values)
    ledger.transient(2 * values, values, numbers)
    ledger.free(heard)
    read = ledger.alloc(2 * values)
    ledger.transient(arrays.state, arrays.heads)
    ledger.transient(arrays.state, 2 * arrays.heads)
    ledger.free(late + read + held + arrays.tokens + arrays.hidden + arrays.factors + values)
    _tokens_back(ledger, arrays)
    ledger.free(solved + sums + found)


def _tokens_back(ledger: Ledger, arrays: Arrays) -> None:
    ledger.transient(5 * arrays.numbers, 2 * arrays.heads)
    ledger.transient(arrays.numbers, arrays.window, arrays.convolved, arrays.masked)
    y = ledger.alloc(arrays.convolved)
    ledger.transient(3 * arrays.convolved)
    slope = ledger.alloc(arrays.convolved)
    ledger.transient(2 * arrays.own_keys, 2 * arrays.lengths)
    ledger.free(slope)
    ledger.transient(arrays.window, arrays.convolved, 2 * arrays.masked)
    ledger.free(y)
