"""Bytes of a mixture of experts, as MLX computes it: all choices at once, sorted by expert.

T tokens, D hidden size, E experts, k of them for a token, F width of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory import pointwise
from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.memory.products import Product, unpack
from edgetune.shape import BlockShape, Experts
from edgetune.storage import FLOAT32_BYTES

SUMMED = 3
"""Arrays (T, D) in float32 while the choices of a token are added."""

CLAMPED = 8
"""Arrays (T k, F) on the way back through gpt-oss's gate, what it read apart."""

SCORED = 3
"""Arrays (T, E) in float32 while experts are chosen."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The passes of one block's experts, on rows of one shape."""

    ledger: Ledger
    rows: BatchShape
    shape: BlockShape
    rule: Experts
    quantized: bool

    @property
    def inner(self) -> int:
        """Bytes of what is inside of all chosen experts (T k, F)."""
        return self.rows.activation_bytes(self.rule.chosen * self.rule.size)

    @property
    def outer(self) -> int:
        """Bytes of what all chosen experts read or make (T k, D)."""
        return self.rows.activation_bytes(self.rule.chosen * self.rule.hidden)

    @property
    def choices(self) -> int:
        """Bytes of the numbers of the experts and of their weights."""
        return 2 * FLOAT32_BYTES * self.rows.tokens * self.rule.chosen

    def forward(self) -> int:
        """Compute; the weighted sum stays, and the returned bytes besides, which are saved."""
        kept = self.ledger.alloc(self._routed())
        numbers = self.ledger.alloc(2 * self.choices)
        gates = self._gates()
        active = self.ledger.alloc(self.inner)
        if self.rule.clamp is not None:
            self.ledger.transient(2 * self.inner)
        self.ledger.free(gates)
        out = self._times("down", self.outer)
        self.ledger.free(active)
        self.ledger.transient(self._summed)
        self.ledger.free(out + numbers)
        self.ledger.alloc(self.rows.activation_bytes(self.rule.hidden))
        return kept

    def backward(self) -> None:
        """Go back; nothing stays that was not there."""
        ledger, inner = self.ledger, self.inner
        numbers = ledger.alloc(2 * self.choices)
        gates = self._gates()
        plain = self._times("down", inner)
        if self.rule.clamp is not None:
            ledger.transient(CLAMPED * inner)
        ledger.transient(
            inner,
            pointwise.activation_backward(
                self.shape.activation,
                self.rows,
                self.rule.chosen * self.rule.size,
                gated=True,
                fused=False,
            ),
        )
        grads = ledger.alloc(2 * inner)
        ledger.free(gates + plain)
        made = self._times(self._first[0], self.outer)
        for role in self._first[1:]:
            made += self._times(role, self.outer)
        ledger.free(grads)
        ledger.transient(self._summed)
        ledger.free(made + numbers)

    @property
    def _first(self) -> list[str]:
        """The roles of the projections that read what comes in."""
        return [role for role, _ in self.rule.projections if role != "down"]

    def _gates(self) -> int:
        """Multiply by them; return the bytes of what they make."""
        each = 2 * self.inner // len(self._first)
        return sum([self._times(role, each) for role in self._first])

    def _routed(self) -> int:
        """Choose experts; return the bytes of what is kept of that."""
        scores = FLOAT32_BYTES * self.rows.tokens * self.rule.number
        narrow = self.rows.width != FLOAT32_BYTES
        wide = FLOAT32_BYTES * self.rows.tokens * self.rule.hidden if narrow else 0
        self.ledger.transient(max(wide + scores, SCORED * scores))
        return self.choices + (0 if self.rule.normalised else scores)

    @property
    def _summed(self) -> int:
        return SUMMED * FLOAT32_BYTES * self.rows.tokens * self.rule.hidden

    def _times(self, role: str, made: int) -> int:
        """Multiply by the matrices of all experts; return the bytes of what is made, which stay."""
        linear = next(x for x in self.shape.expert_linears if x.role == role)
        product = Product(
            inputs=linear.inputs,
            outputs=self.rule.number * linear.outputs,
            rank=0,
            quantized=self.quantized,
        )
        unpack(self.ledger, product, self.rows)
        held = self.ledger.alloc(product.dense(self.rows))
        if self.rows.unpacks and self.rows.width != FLOAT32_BYTES:  # a processor, in float32
            wide = FLOAT32_BYTES * product.inputs * product.outputs
            held += self.ledger.alloc(wide + 2 * (self.outer + self.inner))
        self.ledger.alloc(made)
        self.ledger.free(held)
        if self.rule.biased:  # the bias of each row, and the sum
            self.ledger.transient(2 * made)
        return made
