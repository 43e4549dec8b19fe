"""Bytes of choosing experts, as the torch engine does it.

T tokens, D hidden size, E experts, k of them for a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.memory.elementary import Elementary
from edgetune.memory.sized import Gradient, Sized, Storage
from edgetune.shape import Experts
from edgetune.storage import FLOAT32_BYTES

INDEX = 8
"""Bytes of a token's or an expert's number."""


def route(ops: Elementary, x: Sized, rule: Experts) -> tuple[Sized, Sized]:
    """Return weights (T, k) and chosen experts (T, k); probabilities are saved, or weights."""
    ledger, narrow = ops.ledger, x.width != FLOAT32_BYTES
    tokens = x.numbers // rule.hidden
    each, some = FLOAT32_BYTES * tokens * rule.number, FLOAT32_BYTES * tokens * rule.chosen
    wide, size = FLOAT32_BYTES * x.numbers, x.nbytes
    matrix = _matrix(ops, rule)
    ledger.transient(wide if narrow else 0, each)
    ledger.free(matrix)
    scores = ledger.alloc(each)
    ledger.transient(each, each // FLOAT32_BYTES * INDEX)
    ledger.transient(each // FLOAT32_BYTES * INDEX, some // FLOAT32_BYTES * INDEX)
    shape = (tokens, rule.chosen)
    chosen = ops.tape.made(shape, INDEX, (), _nothing)
    if rule.normalised:
        ledger.transient(2 * some)
        saved = storage = ops.new(some)
    else:
        saved, storage = ops.new(each), ops.new(some)
    if rule.expert_scale is not None:
        storage = _rescaled(ops, rule, some)
    ledger.free(scores)

    def back(_: list[Gradient]) -> Sequence[Gradient]:
        if rule.expert_scale is not None:
            _rescaled(ops, rule, some)
        held = ledger.alloc((1 if rule.normalised else 2) * some + some // rule.chosen + each)
        own = _matrix(ops, rule)
        ledger.transient(wide)
        ledger.free(own)
        ledger.transient(wide, size if narrow else 0)
        ledger.free(held)
        return (ops.new(size),)

    weights = ops.tape.made(
        shape, FLOAT32_BYTES, (x,), back, storage=storage, saved=(saved, chosen)
    )
    return weights, chosen


def _matrix(ops: Elementary, rule: Experts) -> int:
    """Make what makes scores (E, D); return its bytes, which stay, as far as it is a copy."""
    size, narrow = FLOAT32_BYTES * rule.number * rule.hidden, ops.batch.stored != FLOAT32_BYTES
    matrix = ops.ledger.alloc(size if narrow else 0)
    if rule.router_scale is None:
        return matrix
    row = FLOAT32_BYTES * rule.hidden
    ops.ledger.transient(row if narrow else 0, row)
    ops.ledger.transient(row, size)
    ops.ledger.free(matrix)
    return ops.ledger.alloc(size)


def _rescaled(ops: Elementary, rule: Experts, some: int) -> Storage:
    """Make weights times the numbers of their experts."""
    numbers = FLOAT32_BYTES * rule.number if ops.batch.stored != FLOAT32_BYTES else 0
    ops.ledger.transient(numbers, some)
    ops.ledger.transient(2 * some)
    return ops.new(some)


def _nothing(_: list[Gradient]) -> Sequence[Gradient]:
    return ()
