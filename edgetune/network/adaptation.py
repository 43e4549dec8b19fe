"""How a method joins the forward pass: the places where it may step in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal

from edgetune.network.experts import chosen_experts
from edgetune.network.ops import A, Attended
from edgetune.shape import BlockShape, Experts, Linear

if TYPE_CHECKING:
    from edgetune.network.block import Block

Sublayer = Literal["attention", "mlp"]


class Adaptation(Generic[A]):
    """No method at all: the frozen model. A method overrides the places that it acts on."""

    trains_input: bool = False
    """Whether gradients go on to :meth:`embed`."""
    virtual_tokens: int = 0
    """Placeholders before every document, which :meth:`embed` fills."""
    positions: int = 0
    """Positions before the first token of every document."""
    adapts_experts: bool = False
    """Whether it steps in at experts: rows whose methods do not are computed together."""
    first_layer: int = 0
    """The first adapted block: gradients stop there, unless ``trains_input``."""
    reads_summands: bool = False
    """Whether gradients depend on what :attr:`BlockShape.summands` return."""

    def unread(self, block: BlockShape) -> frozenset[str]:
        """Return the projections of a block whose outputs its gradients do not depend on."""
        return frozenset() if self.reads_summands else block.summands

    def of_rows(self, count: int) -> Sequence[Adaptation[A]]:
        """Return the adaptation of each row of a batch of ``count``."""
        return [self] * count

    @property
    def head(self) -> A | None:
        """A trained output projection (V, D) in place of the frozen one."""
        return None

    def look_up(self, block: Block[A], tokens: A) -> A:
        """Return the rows (B, S, D) of an embedding table for tokens (B, S)."""
        return block.ops.embedding(tokens, block.shape.embedding_scale)

    def embed(self, block: Block[A], x: A) -> A:
        """Return the embeddings (B, S, D) of the tokens."""
        return x

    def norm(self, block: Block[A], role: str, x: A) -> A:
        """Return x normalised by a norm of the block, or by the final one."""
        return block.ops.norm(role, x)

    def project(self, block: Block[A], linear: Linear, x: A) -> A:
        """Return a projection (..., outputs) of x (..., inputs)."""
        return block.ops.linear(linear.role, x)

    def attend(self, block: Block[A], attended: Attended[A]) -> A:
        """Return the output (B, H, S, h) of the block's attention."""
        return block.ops.attend(attended)

    def mix(self, block: Block[A], inputs: Sequence[A]) -> A:
        """Return what a mixer without attention makes of what its projections made."""
        return block.ops.mix(block.recurrent, inputs, {})

    def experts(self, block: Block[A], rule: Experts, x: A) -> A:
        """Return what the chosen experts make of x (B, S, D)."""
        return chosen_experts(block, rule, x, {})

    def sublayer(self, block: Block[A], which: Sublayer, x: A, out: A) -> A:
        """Return what one half of the block adds to the stream (B, S, D).

        ``x`` is the half's normalised input and ``out`` what it computed from it.
        """
        return out


BASE: Adaptation[Any] = Adaptation()
