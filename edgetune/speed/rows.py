"""What a pass computes on: so many rows, in which number formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from edgetune.buckets import bucket
from edgetune.choice import Choice
from edgetune.shape import ModelShape
from edgetune.speed.rates import Rates
from edgetune.storage import BYTES, FLOAT32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """B rows of S positions; formats are given by their bytes a number."""

    batch: int
    context: int
    seen: int
    """Positions of a whole row: a tile of S positions sees the keys of those before it, too."""
    read: int = 0
    """Positions before a tile, which a state is behind already."""
    documents: float = 1.0
    """Documents in a row, on average."""
    width: int
    """Of activations."""
    product: int
    """Of what is multiplied."""
    attended: int
    """Of what attention multiplies."""
    stored: int
    """Of norms and biases."""
    in_pieces: bool = False
    """Whether norms, rotations and gates are computed some rows at a time."""
    fused: bool = False
    """Whether norms, rotations and gates are one operation each, which reads and writes once."""

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return self.batch * self.context

    @property
    def narrow(self) -> int:
        """1 where activations are not in float32, so that sums over them take copies; else 0."""
        return int(self.width != FLOAT32_BYTES)

    def of_tile(self, tile: int, read: int = 0) -> Rows:
        """Return one tile of them, and ``read`` positions before it that are computed with it."""
        return replace(self, context=tile + read, read=read)


def rows_of(
    choice: Choice, shape: ModelShape, rates: Rates, documents: float | None = None
) -> Rows:
    """Return what the passes of a choice compute on.

    ``documents`` is the mean length of documents that share rows; None: each has one of its own.
    """
    narrow = choice.compute_dtype != "float32"
    width = BYTES[choice.compute_dtype]
    sharing = 1.0 if documents is None else max(1.0, choice.context / documents)
    context = bucket(choice.context + ceil(sharing) * choice.method.virtual_tokens)
    return Rows(
        batch=choice.micro_batch,
        context=context,
        seen=context,
        documents=sharing,
        width=width,
        product=FLOAT32_BYTES if narrow and rates.widens else width,
        attended=FLOAT32_BYTES if rates.attends_wide else width,
        stored=BYTES[shape.dtype],
        in_pieces=rates.in_pieces,
        fused=rates.fused,
    )
