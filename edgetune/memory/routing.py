"""Bytes of choosing experts, as the torch engine does it.

T tokens, D hidden size, E experts, k of them for a token, G groups of experts.
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
    ledger, router = ops.ledger, _Router(ops, x, rule)
    size, narrow = x.nbytes, x.width != FLOAT32_BYTES
    scores = router.scores()
    if rule.score == "sparsemixer":
        chosen, storage = router.one_by_one()
        ledger.free(scores)
        saved = ops.new(scores)
    else:
        router.choose()
        chosen = ops.tape.made(router.shape, INDEX, (), _nothing)
        saved, storage = router.weights()
        ledger.free(scores)

    def back(_: list[Gradient]) -> Sequence[Gradient]:
        held = router.scores_back()
        own = router.matrix()
        ledger.transient(router.wide)
        ledger.free(own)
        ledger.transient(router.wide, size if narrow else 0)
        ledger.free(held)
        return (ops.new(size),)

    weights = ops.tape.made(
        router.shape, FLOAT32_BYTES, (x,), back, storage=storage, saved=(saved, chosen)
    )
    return weights, chosen


class _Router:
    """The steps of the router of one block; sizes are those of float32 numbers."""

    def __init__(self, ops: Elementary, x: Sized, rule: Experts) -> None:
        self.ops, self.ledger, self.rule = ops, ops.ledger, rule
        self.tokens = x.numbers // rule.hidden
        self.shape = (self.tokens, rule.chosen)
        self.each, self.some = self._one(rule.number), self._one(rule.chosen)
        self.wide = FLOAT32_BYTES * x.numbers
        self.widened = self.wide if x.width != FLOAT32_BYTES else 0
        self.cast = ops.batch.stored != FLOAT32_BYTES

    def _one(self, numbers: int) -> int:
        return FLOAT32_BYTES * self.tokens * numbers

    def matrix(self) -> int:
        """Make what makes scores (E, D); return its bytes, which stay, as far as it is a copy."""
        rule, ledger = self.rule, self.ledger
        size, row = (FLOAT32_BYTES * rule.number * rule.hidden, FLOAT32_BYTES * rule.hidden)
        matrix = ledger.alloc(size if self.cast else 0)
        if rule.router_scale is None:
            return matrix
        ledger.transient(row if self.cast else 0, row)
        ledger.transient(row, size)
        ledger.free(matrix)
        return ledger.alloc(size)

    def scores(self) -> int:
        """Make scores (T, E), which stay; return their bytes."""
        matrix = self.matrix()
        self.ledger.transient(self.widened, self.each)
        self.ledger.free(matrix)
        return self.ledger.alloc(self.each)

    def choose(self) -> None:
        """Sort scores, those of groups that are left out hidden."""
        rule, ledger = self.rule, self.ledger
        held = ledger.alloc(self.each if rule.correction is not None else 0)
        if rule.groups > 1:
            best, groups = self._one(rule.groups * rule.best_of_group), self._one(rule.groups)
            ledger.transient(best, _numbers(best))
            ledger.transient(best, groups)
            bools = groups // FLOAT32_BYTES
            ledger.transient(groups, bools, groups, _numbers(groups))
            ledger.transient(groups, bools, self.each)
            ledger.free(held)
            held = ledger.alloc(self.each)
        ledger.transient(self.each, _numbers(self.each))
        ledger.transient(_numbers(self.each), _numbers(self.some))
        ledger.free(held)

    def one_by_one(self) -> tuple[Sized, Storage]:
        """Choose and weigh one expert after the other; return their numbers and weights."""
        one, chosen = self._one(1), self.rule.chosen
        parts = self.ledger.alloc(chosen * (one + _numbers(one)))
        self._one_of_them()
        chosen_numbers = self.ops.tape.made(self.shape, INDEX, (), _nothing)
        weights = self.ops.new(self.some)
        self.ledger.free(parts)
        return chosen_numbers, weights

    def _one_of_them(self) -> None:
        """Choose one expert among those that are left, and make its probabilities."""
        each, one = self.each, self._one(1)
        left = self.ledger.alloc(each)
        self.ledger.transient(each, _numbers(each))
        held = self.ledger.alloc(2 * one)
        self.ledger.transient(3 * each)
        far = each // FLOAT32_BYTES
        self.ledger.transient(far, 2 * each)
        self.ledger.free(left + held)

    def weights(self) -> tuple[Storage, Storage]:
        """Make weights (T, k); return what is saved and them."""
        rule, ops, some = self.rule, self.ops, self.some
        if rule.score == "softmax" and not rule.normalised:
            saved, storage = ops.new(self.each), ops.new(some)
        elif rule.score == "softmax":
            self.ledger.transient(2 * some)
            saved = storage = ops.new(some)
        else:
            saved = storage = ops.new(some)
            if rule.normalised:
                self.ledger.transient(self._one(1), some)
                storage = ops.new(some)
        return saved, self._rescaled(storage)

    def scores_back(self) -> int:
        """Make the gradients of scores (T, E), which stay; return all bytes that do."""
        rule, some, one = self.rule, self.some, self._one(1)
        held = 0
        if rule.expert_scale is not None or rule.factor != 1.0:
            held = self.ledger.alloc(some)
            self.ledger.transient(2 * some)
        if rule.score == "sparsemixer":
            total = self.ledger.alloc(self.each)
            self._one_of_them()
            return held + total
        if rule.score == "sigmoid":
            self.ledger.transient(3 * some, 2 * one)
            return held + self.ledger.alloc(some + self.each)
        parts = 1 if rule.normalised else 2
        return held + self.ledger.alloc(parts * some + one + self.each)

    def _rescaled(self, weights: Storage) -> Storage:
        """Make weights times the numbers of their experts, and times the factor of all."""
        rule, some = self.rule, self.some
        if rule.expert_scale is not None:
            numbers = FLOAT32_BYTES * rule.number if self.cast else 0
            self.ledger.transient(numbers, some)
            self.ledger.transient(2 * some)
            weights = self.ops.new(some)
        return weights if rule.factor == 1.0 else self.ops.new(some)


def _numbers(size: int) -> int:
    """Return the bytes of as many numbers of places as there are float32 numbers."""
    return size // FLOAT32_BYTES * INDEX


def _nothing(_: list[Gradient]) -> Sequence[Gradient]:
    return ()
