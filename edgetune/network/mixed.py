"""Several adapters in one batch, a row with one of them each or with none.

What is frozen and the same for all rows is computed for all rows; a block's weights are brought
to the device once, and each matrix is unpacked once for all adapters. At the places where a
method may step in, neighbouring rows of the same adapter go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from edgetune.network.adaptation import Adaptation, Sublayer
from edgetune.network.block import Block
from edgetune.network.experts import chosen_experts
from edgetune.network.ops import A, Attended
from edgetune.shape import Experts, Linear


def mixed(rows: Sequence[Adaptation[A]]) -> Adaptation[A]:
    """Return the adaptation of a batch whose rows have these."""
    return rows[0] if all(row is rows[0] for row in rows) else Mixed(rows)


class Mixed(Adaptation[A]):
    """Lets each row's adaptation step in for it. Inference only: all see one state of a matrix."""

    def __init__(self, rows: Sequence[Adaptation[A]]) -> None:
        """Take the adaptation of each row, which stays as it is in all passes."""
        self._rows = tuple(rows)
        self._parts: list[tuple[slice, Adaptation[A]]] = []
        start = 0
        for _, group in groupby(rows, key=id):
            members = list(group)
            self._parts.append((slice(start, start + len(members)), members[0]))
            start += len(members)

    def of_rows(self, count: int) -> Sequence[Adaptation[A]]:
        """Return the adaptation of each row."""
        if count != len(self._rows):
            raise ValueError(f"{len(self._rows)} rows have adapters, the batch has {count}")
        return self._rows

    def look_up(self, block: Block[A], tokens: A) -> A:
        """Return the rows (B, S, D) of each row's embedding table."""
        rows = block.ops.rows
        return block.ops.concatenated(
            [one.look_up(block, rows(tokens, at)) for at, one in self._parts]
        )

    def embed(self, block: Block[A], x: A) -> A:
        """Return the embeddings (B, S, D)."""
        rows = block.ops.rows
        return block.ops.concatenated(
            [one.embed(replace(block, ops=block.ops.of_rows(at)), rows(x, at))
             for at, one in self._parts]
        )  # fmt: skip

    def norm(self, block: Block[A], role: str, x: A) -> A:
        """Return x (B, ...) normalised."""
        rows = block.ops.rows
        return block.ops.concatenated(
            [one.norm(block, role, rows(x, at)) for at, one in self._parts]
        )

    def project(self, block: Block[A], linear: Linear, x: A) -> A:
        """Return a block's projection of x (B, S, inputs)."""
        once, rows = replace(block, ops=block.ops.unpacked_once(linear.role)), block.ops.rows
        return block.ops.concatenated(
            [one.project(once, linear, rows(x, at)) for at, one in self._parts]
        )

    def attend(self, block: Block[A], attended: Attended[A]) -> A:
        """Return the output (B, H, S, h) of a block's attention."""
        rows = block.ops.attended_rows
        return block.ops.concatenated(
            [one.attend(block, rows(attended, at)) for at, one in self._parts]
        )

    def mix(self, block: Block[A], inputs: Sequence[A]) -> A:
        """Return what a mixer without attention makes of what its projections made."""
        rows = block.ops.rows
        return block.ops.concatenated(
            [one.mix(replace(block, ops=block.ops.of_rows(at)), [rows(x, at) for x in inputs])
             for at, one in self._parts]
        )  # fmt: skip

    def experts(self, block: Block[A], rule: Experts, x: A) -> A:
        """Return what the chosen experts make of x (B, S, D)."""
        if not any(one.adapts_experts for _, one in self._parts):
            return chosen_experts(block, rule, x, {})
        rows = block.ops.rows
        return block.ops.concatenated(
            [one.experts(replace(block, method=one), rule, rows(x, at)) for at, one in self._parts]
        )

    def sublayer(self, block: Block[A], which: Sublayer, x: A, out: A) -> A:
        """Return what one half of a block adds to the stream (B, S, D)."""
        rows = block.ops.rows
        return block.ops.concatenated(
            [one.sublayer(block, which, rows(x, at), rows(out, at)) for at, one in self._parts]
        )
