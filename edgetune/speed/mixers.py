"""What mixers without attention and mixtures of experts take.

T tokens, D hidden size, E experts, k of them for a token, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from edgetune.mixer import PIECE, SPAN, GatedDelta, StateSpace
from edgetune.shape import BlockShape, Experts
from edgetune.speed.attention import ATTENTION_PASSES, Attending
from edgetune.speed.counted import Counted
from edgetune.speed.tally import Tally
from edgetune.storage import FLOAT32_BYTES

SPAN_AHEAD, SPAN_BACK, CARRIED = 110, 372, 6
"""Operations by which Mamba-2 takes a span of pieces, and those that carry its state past each."""

PIECE_AHEAD, PIECE_BACK = 134, 517
"""Operations by which the delta rule takes a piece of tokens, one way and back."""


class Mixing(Attending):
    """Short convolutions, the delta rule, and experts."""

    def convolution(self, x: Counted, weight: Counted, bias: Counted | None) -> Counted:
        """Return ``c * convolution(b * u)`` (B, S, D) of x (B, S, 3 D) with weight (D, 1, K)."""
        inputs = (x, weight) if bias is None else (x, weight, bias)
        channels, _, taps = weight.shape
        out = self.made((*x.shape[:-1], channels), x.width, inputs)
        one, spans = FLOAT32_BYTES * out.numbers, self._spans()
        self.ahead.count(14 + 3 * (taps - 1) * spans, (6 + 4 * (taps - 1)) * one)
        if out.needs:
            self.back.count(29 + 6 * (taps - 1) * spans, (16 + 8 * (taps - 1)) * one)
        return out

    def _spans(self) -> float:
        return 1 if self.batch.documents == 1 else self.batch.batch * self.batch.documents

    def delta_rule(self, inputs: Sequence[Counted], mixer: GatedDelta) -> Counted:
        """Return what is read (B, S, H V): pieces of tokens one after another, in float32."""
        x = inputs[0]
        out = self.made((*x.shape[:-1], mixer.values), x.width, inputs)
        tokens, pieces = x.numbers // x.shape[-1], ceil(x.shape[1] / PIECE)
        flops = 2 * tokens * mixer.products
        numbers = mixer.channels * (3 + 2 * mixer.taps) + 8 * PIECE * mixer.value_heads
        numbers += 12 * mixer.value_heads * (mixer.key_dim + mixer.value_dim)
        moved = FLOAT32_BYTES * tokens * numbers
        self.ahead.wide += flops
        self.ahead.count(7 + PIECE_AHEAD * pieces, moved)
        if out.needs:
            self.back.wide += (ATTENTION_PASSES - 1) * flops
            launches = PIECE_BACK * pieces - 108  # a state less than pieces
            self.back.count(launches, 3 * moved)
        return out

    def scan(self, inputs: Sequence[Counted], mixer: StateSpace) -> Counted:
        """Return what Mamba-2 reads (B, S, H V): a few pieces of tokens at a time, in float32."""
        x = inputs[0]
        out = self.made((*x.shape[:-1], mixer.values), x.width, inputs)
        tokens, positions = x.numbers // x.shape[-1], x.shape[1]
        spans, pieces = ceil(positions / SPAN), ceil(positions / PIECE)
        flops = 2 * tokens * mixer.products
        numbers = mixer.channels * (3 + 2 * mixer.taps) + 8 * PIECE * mixer.heads
        moved = FLOAT32_BYTES * tokens * (numbers + 12 * mixer.values)
        self.ahead.wide += flops
        self.ahead.count(7 + SPAN_AHEAD * spans + CARRIED * pieces, moved)
        if out.needs:
            self.back.wide += (ATTENTION_PASSES - 1) * flops
            launches = SPAN_BACK * spans - 73  # a state less than spans
            self.back.count(launches + 2 * CARRIED * pieces, 3 * moved)
        return out

    # experts

    def routed(self, x: Counted, rule: Experts) -> tuple[Counted, Counted]:
        """Return weights (T, k) and chosen experts (T, k)."""
        tokens = x.numbers // rule.hidden
        weights = self.made((tokens, rule.chosen), FLOAT32_BYTES, (x,))
        flops, each = 2 * x.numbers * rule.number, FLOAT32_BYTES * tokens * rule.number
        self.ahead.wide += flops
        self.ahead.count(11 + rule.biased + _choosing(rule), 8 * each + 6 * x.numbers)
        if weights.needs:
            self.back.wide += flops
            others = 3 * (rule.expert_scale is not None) + 6 * (rule.score == "sigmoid")
            self.back.count(12 + others, 4 * each + 6 * x.numbers)
        return weights, Counted(weights.shape, 8, needs=False)

    def shared_part(self, x: Counted, y: Counted) -> Counted:
        """Return y times a share a token, which is made of x."""
        out = self.made(y.shape, y.width, (x, y))
        narrow = self.batch.narrow
        self.ahead.count(4 + 3 * narrow, 4 * y.nbytes + 4 * narrow * x.numbers)
        if out.needs:
            self.back.count(8 + 3 * narrow, 8 * y.nbytes + 4 * narrow * x.numbers)
        return out

    def mixture(self, x: Counted, weights: Counted, block: BlockShape) -> Counted:
        """Return the weighted sum of the experts' outputs, one expert after the other."""
        rule, tokens = block.experts, weights.shape[0]
        assert rule is not None
        out = self.made(x.shape, x.width, (x, weights))
        used = rule.number * (1 - (1 - rule.chosen / rule.number) ** tokens)
        rows, matrices, clamped = (
            tokens * rule.chosen,
            len(rule.projections),
            rule.clamp is not None,
        )
        pieces = max(used, rows / rule.rows(tokens))
        inner, outer = rows * rule.size * x.width, rows * rule.hidden * x.width
        self._expert(self.ahead, block, rows, pieces, times=1.0)
        self.ahead.count(9 + (13 + 6 * matrices + 13 * clamped) * pieces, 5 * inner + 12 * outer)
        if out.needs:  # all matrices back, and all but the last one forward again
            self._expert(self.back, block, rows, pieces, times=(2 * matrices - 1) / matrices)
            self.back.count(
                13 + (20 + 11 * matrices + 33 * clamped) * pieces, 20 * inner + 16 * outer
            )
        return out

    def _expert(
        self, tally: Tally, block: BlockShape, rows: float, pieces: float, times: float
    ) -> None:
        """Count the products of so many rows, each with one expert's matrices."""
        assert block.experts is not None
        for linear in block.expert_linears[: len(block.experts.projections)]:
            self.unpacked(tally, linear, times * pieces)
            tally.products += times * 2 * rows * linear.inputs * linear.outputs


def _choosing(rule: Experts) -> int:
    """Return further operations of choosing experts, where more than their scores decides."""
    there = (rule.correction, rule.router_scale, rule.expert_scale)
    sigmoids = 3 * (rule.score == "sigmoid")
    scales = sum((name is not None) * count for name, count in zip(there, (1, 2, 3), strict=True))
    one_by_one = 10 * rule.chosen * (rule.score == "sparsemixer")
    return sigmoids + scales + one_by_one + (rule.factor != 1.0) + 14 * (rule.groups > 1)
