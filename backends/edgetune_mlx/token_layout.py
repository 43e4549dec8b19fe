"""Where the tokens of a micro-batch stand, and the keys and values of those before.

B rows, S positions, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.data.batch import MicroBatch
from edgetune.data.virtual import computed
from edgetune.network.adaptation import Adaptation
from edgetune.shape import ModelShape, Rotary
from edgetune_mlx.attention import Keys
from edgetune_mlx.out_of_memory import out_of_memory
from edgetune_mlx.pointwise import rotate
from edgetune_mlx.rotary import frequencies
from edgetune_mlx.tile_attention import Tile


@dataclass(slots=True)
class Cache:
    """Keys and values of one row in generation, (1, G, capacity, h) a layer.

    They are filled to ``length``, the method's virtual tokens included; a pass writes ``arriving``
    ones behind it, and who runs the pass moves it. ``carried`` is what each layer without attention
    goes on from.
    """

    keys: list[mx.array]
    values: list[mx.array]
    carried: list[Any]
    method: Adaptation[mx.array]
    length: int = 0
    arriving: int = 0

    @property
    def before(self) -> int:
        """Positions that the method takes before the first token."""
        return self.method.virtual_tokens + self.method.positions

    def cut(self, tokens: int) -> None:
        """Forget all but the first tokens; see :class:`edgetune.backend.Cache`."""
        self.length = self.method.virtual_tokens + tokens if tokens else 0

    def resize(self, capacity: int) -> None:
        """Have room for so many tokens; a layer after the other is copied."""
        capacity += self.method.virtual_tokens
        with out_of_memory():
            for held in (self.keys, self.values):
                for layer, old in enumerate(held):
                    rest = [(0, 0), (0, 0), (0, capacity - self.length), (0, 0)]
                    if old.shape[2] != capacity:
                        held[layer] = mx.pad(old[:, :, : self.length], rest)
                        mx.eval(held[layer])


Lent = tuple[mx.array, mx.array]
"""Keys and values (B, G, S, h) of a block that later ones read."""


@dataclass(slots=True, kw_only=True)
class TokenLayout:
    """Where the tokens of a micro-batch stand.

    ``positions`` (B, S) start again with each document, ``documents`` (B, S) numbers the
    documents of a row and is None if no row has several. In generation each row is one document,
    or the end of one, and has a cache; all are empty or none is.

    ``context`` is a length that stands for those of all documents, as far as the rotation depends
    on them; ``lengths`` (B, S) has each token's, where one cannot stand for all. Where documents
    go on from others, ``documents`` numbers the stretches of a row that are seen alike, and
    ``trunks`` (B, S) is the number of the one that a token goes on from.

    ``lent`` are keys and values by the layer that made them, ``per_layer`` what each block reads
    besides the stream, (B, S, P) by layer. In a ``tile`` of a block all of this is the tile's.
    """

    positions: mx.array
    documents: mx.array | None
    context: int
    lengths: mx.array | None = None
    trunks: mx.array | None = None
    first: int | None = 0
    """Position of the first token of every row; None if they differ."""
    caches: Sequence[Cache] = ()
    lent: dict[int, Lent] = field(default_factory=dict)
    per_layer: Sequence[mx.array] | Mapping[int, mx.array] = ()
    tile: Tile | None = None
    _angles: dict[Rotary, mx.array] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        batch: MicroBatch,
        method: Adaptation[mx.array],
        caches: Sequence[Cache] = (),
    ) -> TokenLayout:
        """Return where the tokens of a micro-batch stand, its placeholders included."""
        if batch.shared and not shape.forks:
            raise ValueError("documents of this model cannot go on from another one")
        each = method.of_rows(len(batch.tokens))
        seen = [cache.length for cache in caches] or [0] * len(each)
        pairs = zip(each, seen, strict=True)
        before = np.array([[row.positions + length] for row, length in pairs], np.int32)
        several = any(len(row) > 1 for row in batch.documents)
        alike = not several and len(np.unique(before)) == 1
        lengths = batch.lengths() + before
        reached = {shape.reached(int(length)) for length in np.unique(lengths[batch.lengths() > 0])}
        numbers, trunks = _numbered(batch)
        return cls(
            positions=mx.array(batch.positions() + before),
            documents=mx.array(numbers) if several else None,
            trunks=mx.array(trunks) if batch.shared else None,
            context=max(reached, default=1),
            lengths=mx.array(lengths) if len(reached) > 1 else None,
            first=int(before[0, 0]) if alike else None,
            caches=caches,
        )

    @property
    def keys(self) -> Keys:
        """Which keys the tokens see."""
        return Keys(self.documents, self.positions, self.trunks)

    def rotate(self, x: mx.array, rotary: Rotary) -> mx.array:
        """Return x (B, heads, S, h) rotated by position."""
        if rotary.scaling == "longrope" and self.lengths is not None:
            lengths = self.lengths[:, None, :, None]  # (B, 1, S, 1)
            short, long = (frequencies(rotary, rotary.original_context + i) for i in (0, 1))
            each = mx.where(lengths > rotary.original_context, long, short)
            return rotate(x, each, rotary, self.positions)
        if rotary not in self._angles:
            self._angles[rotary] = frequencies(rotary, self.context)
        alike = self.first is not None and not rotary.growth
        positions = self.first if alike and self.first is not None else self.positions
        return rotate(x, self._angles[rotary], rotary, positions)

    def of_rows(self, rows: slice) -> TokenLayout:
        """Return where the tokens of some rows stand."""
        return replace(
            self,
            positions=self.positions[rows],
            documents=None if self.documents is None else self.documents[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
            trunks=None if self.trunks is None else self.trunks[rows],
            caches=self.caches[rows],
        )

    def of_span(self, span: slice, tile: Tile | None = None) -> TokenLayout:
        """Return where the tokens at some positions of all rows stand, in a tile of a block."""
        own = self.per_layer
        each = own.items() if isinstance(own, Mapping) else enumerate(own)
        return replace(
            self,
            positions=self.positions[:, span],
            documents=None if self.documents is None else self.documents[:, span],
            lengths=None if self.lengths is None else self.lengths[:, span],
            trunks=None if self.trunks is None else self.trunks[:, span],
            first=None if self.first is None else self.first + span.start,
            per_layer={layer: x[:, span] for layer, x in each},
            tile=tile,
        )


def placed(
    shape: ModelShape,
    batch: MicroBatch,
    method: Adaptation[mx.array],
    caches: Sequence[Cache] = (),
) -> tuple[MicroBatch, TokenLayout]:
    """Return a micro-batch with the placeholders that its rows want, and where its tokens stand."""
    further = any(cache.length for cache in caches)
    each = method.of_rows(len(batch.tokens))
    batch = computed(batch, [0 if further else row.virtual_tokens for row in each])
    return batch, TokenLayout.of(shape, batch, method, caches)


def _numbered(batch: MicroBatch) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the numbers (B, S) of the document of each token, and of the one it goes on from.

    Tokens that another document goes on from have a number of their own. Padding belongs to none.
    """
    numbers = np.full(batch.tokens.shape, -1, np.int32)
    trunks = numbers.copy()
    for row, trunk, lengths, begins in zip(
        numbers, trunks, batch.documents, batch.begins, strict=True
    ):
        start = root = 0
        for number, (length, first) in enumerate(zip(lengths, begins, strict=True)):
            row[start : start + length] = 2 * number
            trunk[start : start + length] = 2 * number
            if first:
                shared = 2 * number + 1
                row[root : root + first] = shared
                same = slice(root, start)
                trunk[same] = shared
                trunk[start : start + length] = shared
            else:
                root = start
            start += length
    return numbers, trunks
