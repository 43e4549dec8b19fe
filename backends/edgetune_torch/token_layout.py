"""Where the tokens of a micro-batch stand, and the keys and values of those before.

B rows, S positions, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetune.data.batch import MicroBatch
from edgetune.data.virtual import computed
from edgetune.network.adaptation import Adaptation
from edgetune.shape import ModelShape, Rotary
from edgetune_torch.documents import Documents, Shared, within
from edgetune_torch.out_of_memory import out_of_memory
from edgetune_torch.rotary import cos_sin
from edgetune_torch.tile_attention import Tile


@dataclass(slots=True)
class Cache:
    """Keys and values of one row in generation, (1, G, capacity, h) a layer.

    They are filled to ``length``, the method's virtual tokens included; a pass writes behind it,
    and who runs the pass moves it. ``carried`` is what each layer without attention goes on from.
    """

    keys: list[Tensor]
    values: list[Tensor]
    carried: list[Any]
    method: Adaptation[Tensor]
    length: int = 0

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
                    if old.shape[2] != capacity:
                        held[layer] = _resized(old, capacity, self.length)


def _resized(old: Tensor, capacity: int, length: int) -> Tensor:
    rows, heads, _, size = old.shape
    new = old.new_empty(rows, heads, capacity, size)
    new[:, :, :length] = old[:, :, :length]
    return new


Lent = tuple[Tensor, Tensor]
"""Keys and values (B, G, S, h) of a block that later ones read."""


@dataclass(slots=True, kw_only=True)
class TokenLayout:
    """Where the tokens of a micro-batch stand: positions (B, S) and documents a row.

    ``shared`` says what documents go on from.
    ``lengths`` (B, S) are those of the tokens' documents, where the rotation depends on them.
    In generation each row is one document, or the end of one, and has a cache; all are empty or
    none is. In a ``tile`` of a block, positions and lengths are the tile's; documents are those of
    whole rows.

    ``lent`` are keys and values by the layer that made them, ``per_layer`` (L, B, S, P) what each
    block reads besides the stream.
    """

    positions: Tensor
    documents: Documents
    shared: Shared = ()
    dtype: torch.dtype
    lengths: Tensor | None = None
    caches: Sequence[Cache] = ()
    lent: dict[int, Lent] = field(default_factory=dict)
    per_layer: Tensor | None = None
    tile: Tile | None = None
    _tables: dict[Rotary, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def documents_here(self) -> Documents:
        """The lengths of the documents of each row, as far as they lie in the tile."""
        tile = self.tile
        return self.documents if tile is None else within(self.documents, tile.span)

    def cos_sin(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Return the rotation of these positions, computed once for all layers."""
        if rotary not in self._tables:
            self._tables[rotary] = cos_sin(rotary, self.positions, self.dtype, self.lengths)
        return self._tables[rotary]

    def of_rows(self, rows: slice) -> TokenLayout:
        """Return where the tokens of some rows stand."""
        lengths = None if self.lengths is None else self.lengths[rows]
        return replace(
            self, positions=self.positions[rows], documents=self.documents[rows], lengths=lengths,
            shared=self.shared[rows], caches=self.caches[rows], _tables={},
        )  # fmt: skip

    def of_span(self, span: slice, tile: Tile | None = None) -> TokenLayout:
        """Return where the tokens at some positions of all rows stand, in a tile of a block."""
        lengths = None if self.lengths is None else self.lengths[:, span]
        beside = None if self.per_layer is None else self.per_layer[:, :, span]
        return replace(
            self, positions=self.positions[:, span], lengths=lengths, per_layer=beside, tile=tile,
            _tables={},
        )  # fmt: skip


def placed(
    batch: MicroBatch,
    method: Adaptation[Tensor],
    shape: ModelShape,
    dtype: torch.dtype,
    device: torch.device,
    caches: Sequence[Cache] = (),
) -> tuple[MicroBatch, TokenLayout]:
    """Return a micro-batch with the placeholders that its rows want, and where its tokens stand."""
    if batch.shared and not shape.forks:
        raise ValueError("documents of this model cannot go on from another one")
    each = method.of_rows(len(batch.tokens))
    seen = [cache.length for cache in caches] or [0] * len(each)
    batch = computed(batch, [0 if any(seen) else one.virtual_tokens for one in each])
    pairs = zip(each, seen, strict=True)
    before = np.array([[one.positions + length] for one, length in pairs], np.int32)
    lengths = batch.lengths() + before if shape.rotates_by_length else None
    return batch, TokenLayout(
        positions=torch.from_numpy(batch.positions() + before).to(device),
        documents=batch.documents,
        shared=batch.shared,
        dtype=dtype,
        lengths=None if lengths is None else torch.from_numpy(lengths).to(device),
        caches=caches,
    )
