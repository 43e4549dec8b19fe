"""What mixtures of experts take.

T tokens, D hidden size, E experts, k of them for a token, F width of an expert.
"""

from __future__ import annotations

from edgetune.network.ops import ExpertUpdates
from edgetune.shape import BlockShape, Experts
from edgetune.speed.attention import Attending
from edgetune.speed.counted import Counted
from edgetune.speed.expert_updates import FILLED, Updating
from edgetune.speed.tally import Tally
from edgetune.storage import FLOAT32_BYTES


class Mixing(Attending):
    """Mixtures of experts."""

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

    def mixture(
        self, x: Counted, weights: Counted, block: BlockShape, updates: ExpertUpdates[Counted]
    ) -> Counted:
        """Return the weighted sum of the experts' outputs, one expert after the other."""
        rule, tokens = block.experts, weights.shape[0]
        assert rule is not None
        trained = [part for each in updates.values() for part in (each.a, each.b)]
        out = self.made(x.shape, x.width, (x, weights, *trained))
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
        narrow = self.batch.product != FLOAT32_BYTES
        for role, each in updates.items():
            own = Updating.of(role, each, rule, narrow=narrow)
            own.ahead(self.ahead, rows, pieces)
            if out.needs:
                own.back(self.back, rows, pieces, down=role == "down")
                gated = (
                    2 if role == "down" and rule.gated and not clamped else 0
                )  # what it reads is made again
                self.back.count(gated * pieces, gated * 3 * inner)
        if updates and out.needs:
            self.back.count(FILLED * pieces + len(trained), sum(each.nbytes for each in trained))
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
