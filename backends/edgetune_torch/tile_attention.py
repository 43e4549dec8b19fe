"""Attention of a tile of a block: its queries against the keys of all tiles up to it.

Keys come in pieces, and what is known of the softmax is kept up from piece to piece. A piece goes
through a kernel where there is one, else its scores are made. On the way back each piece is
computed again from the log-sum-exp of all of them (FlashAttention, Dao 2022, appendix B).

B rows, H heads, G key/value heads, S positions of a row, N of a tile, h channels of a head,
R = H/G N queries that share a key/value head, K keys of a piece, P keys in front of documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgetune.network.ops import Attended
from edgetune.shape import Attention
from edgetune_torch.documents import Documents, Shared, Span, rows_of
from edgetune_torch.flash import joined, laid_out
from edgetune_torch.piece_attention import Sight, kernel, kernel_back, scored, scored_back
from edgetune_torch.precision import attends, attention_dtype

KEYS = 2048
"""Keys of a piece that a kernel attends to."""

SCORED_QUERIES, SCORED_KEYS = 256, 512
"""Queries and keys whose scores are held at once where there is no kernel."""

WIDEST_HEAD = 256
"""Channels of a head that the kernel of a card takes; a multiple of 8."""


@dataclass(frozen=True, slots=True)
class BlockKeys:
    """Keys and values (B, G, S, h) of a block's tiles, and their float32 gradients on the way back."""

    k: Tensor
    v: Tensor
    k_grad: Tensor | None = None
    v_grad: Tensor | None = None

    @classmethod
    def empty(cls, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> BlockKeys:
        """Return keys and values that are still to come."""
        return cls(*(torch.empty(size, dtype=dtype, device=device) for _ in range(2)))

    def with_gradients(self) -> BlockKeys:
        """Return the same with gradients of zero."""
        k_grad, v_grad = (torch.zeros(self.k.shape, device=self.k.device) for _ in range(2))
        return BlockKeys(self.k, self.v, k_grad, v_grad)

    @property
    def grads(self) -> tuple[Tensor, ...]:
        """Those gradients, if this is the way back."""
        return () if self.k_grad is None or self.v_grad is None else (self.k_grad, self.v_grad)

    def at(self, *place: slice) -> BlockKeys:
        """Return those of some rows, heads or positions, as views."""
        grads = (None if x is None else x[place] for x in (self.k_grad, self.v_grad))
        return BlockKeys(self.k[place], self.v[place], *grads)


@dataclass(slots=True)
class Tile:
    """The positions from ``start`` to before ``stop`` of every row of a block.

    ``before`` has the keys and values of the tiles before. ``own`` are the tile's, once they are
    computed with gradients. The first ``read`` positions are computed for those after them alone.
    A mixer that carries a state goes on from ``state``, the one ``behind`` the tile comes of it.
    """

    start: int
    stop: int
    before: BlockKeys
    own: tuple[Tensor, ...] = ()
    read: int = 0
    state: Tensor | None = None
    behind: Tensor | None = None

    @property
    def span(self) -> slice:
        """The positions."""
        return slice(self.start, self.stop)

    def leave(self, k: Tensor, v: Tensor) -> None:
        """Take the tile's keys and values (B, G, N, h): in passes with gradients those are there."""
        if torch.is_grad_enabled():
            self.own = k, v
            return
        place = self.before.at(slice(None), slice(None), slice(self.start, self.stop))
        place.k.copy_(k)
        place.v.copy_(v)

    def of(self, *place: slice) -> Tile:
        """Return the tile of some rows or heads."""
        return replace(self, before=self.before.at(*place), own=())


def attend_in_tile(
    attended: Attended[Tensor], tile: Tile, front: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the output (B, H, N, h) for the queries of a tile.

    ``front`` are keys and values (1, G, P, h) in front of those of every document.
    """
    k, v = (None, None) if front is None else front
    documents = attended.keys.documents, attended.keys.shared
    pieces = _Pieces(tile, attended.rule, documents, front)
    out: Tensor = TileAttention.apply(  # type: ignore[no-untyped-call]
        attended.q, attended.k, attended.v, k, v, attended.sinks, pieces
    )
    return out


class TileAttention(torch.autograd.Function):
    """Saves its inputs, the output and one float a query; adds to the gradients of past keys."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, front_k: Tensor | None,
        front_v: Tensor | None, sinks: Tensor | None, pieces: _Pieces,
    ) -> Tensor:  # fmt: skip
        """Return the output (B, H, N, h), laid out (B, N, H, h)."""
        pieces = pieces.of(q, k, v, front_k, front_v)
        out, sums = laid_out(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        for some in pieces.queries():
            found, log_sum = _softmax(some, pieces, q, sinks)
            out[some.place] = found
            sums[some.place] = log_sum
            del found  # it must not live on beside the next ones
        ctx.save_for_backward(q, k, v, front_k, front_v, out, sums)
        ctx.pieces = pieces.without_tensors()
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of q, k, v and of what is in front."""
        q, k, v, front_k, front_v, out, sums = ctx.saved_tensors
        pieces = ctx.pieces.of(q, k, v, front_k, front_v)
        q_grad, gathered = laid_out(q), _Gathered(k, front_k, pieces.tile)
        for some in pieces.queries():
            q_grad[some.place] = _back(some, pieces, (grads[0], q, out), sums, gathered)
        return q_grad, *gathered.results(q.dtype), None, None


@dataclass(frozen=True, slots=True)
class _Queries:
    """Queries of one row from ``start`` to before ``stop``, of one document.

    ``place`` is theirs within the tile.
    """

    row: int
    document: Span
    start: int
    stop: int
    place: tuple[slice, slice, slice]

    @property
    def begin(self) -> int:
        """Where the document begins, counted from its own positions on: before what it shares."""
        trunk, own = self.document.trunk, self.document.own
        shared: int = 0 if trunk is None else trunk.stop - trunk.start
        begin: int = own.start - shared
        return begin

    def seen(self, keys: _Keys) -> Sight:
        """Return what they see of some keys."""
        return Sight(range(self.start, self.stop), keys.start, keys.causal)

    def first(self, window: int | None) -> int:
        """Return the first position that any of them sees."""
        return self.begin if window is None else max(self.begin, self.start - window + 1)


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys (1, G, K, h) and values, which are to the queries at positions from ``start`` on.

    ``target`` is where they come from.
    """

    k: Tensor
    v: Tensor
    start: int
    causal: bool
    """Whether they are the queries' own, of which each sees those before it."""
    target: tuple[str, tuple[slice, slice, slice]]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The pieces that the attention of a tile is computed in."""

    tile: Tile
    rule: Attention
    documents: tuple[Documents, Shared]
    front: tuple[Tensor, Tensor] | None
    own: tuple[Tensor, Tensor] | None = None
    kernel: bool = False
    dtype: torch.dtype = torch.float32

    def of(
        self, q: Tensor, k: Tensor, v: Tensor, front_k: Tensor | None, front_v: Tensor | None
    ) -> _Pieces:
        """Return the same over tensors that are there."""
        front = None if front_k is None or front_v is None else (front_k, front_v)
        length = self.tile.before.k.shape[2] + (0 if front is None else front[0].shape[2])
        return replace(
            self, front=front, own=(k, v), kernel=_fused(self.rule, length, q),
            dtype=attention_dtype(q.dtype, q.device),
        )  # fmt: skip

    def without_tensors(self) -> _Pieces:
        """Return what says how to cut alone: tensors are saved apart."""
        return replace(self, front=None, own=None)

    def queries(self) -> Iterator[_Queries]:
        """Yield the queries of each document, in few at a time where scores are made."""
        tile, positions = self.tile, self.tile.before.k.shape[2]
        for row, documents in rows_of(*self.documents):
            whole = [Span(slice(0, positions))]  # padding too
            for document in whole if len(documents) <= 1 else documents:
                start, stop = document.own.start, document.own.stop
                start, stop = max(start, tile.start), min(stop, tile.stop)
                step = max(1, stop - start) if self.kernel else SCORED_QUERIES
                for at in range(start, stop, step):
                    last = min(at + step, stop)
                    span = slice(at - tile.start, last - tile.start)
                    place = (slice(row, row + 1), slice(None), span)
                    yield _Queries(row, document, at, last, place)

    def keys(self, some: _Queries) -> Iterator[_Keys]:
        """Yield what some queries see: their own first, of which each sees itself at least."""
        yield self._cut(some, some.start, some.stop, causal=True)
        first, own, trunk = some.first(self.rule.window), some.document.own, some.document.trunk
        for start, stop in self._cuts(max(first, own.start), some.start):
            yield self._cut(some, start, stop)
        if trunk is not None:
            moved = trunk.stop - own.start
            for start, stop in self._cuts(min(first, own.start) + moved, trunk.stop):
                yield self._cut(some, start, stop, moved=moved)
        if self.front is not None and (self.rule.window is None or first == some.begin):
            k, v = self.front
            yield _Keys(k, v, some.begin - k.shape[2], False, ("front", (slice(None),) * 3))

    def _cuts(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield pieces of positions, none of which is in and before the tile."""
        step, cut = KEYS if self.kernel else SCORED_KEYS, self.tile.start
        for low, high in ((begin, min(end, cut)), (max(begin, cut), end)):
            yield from ((start, min(start + step, high)) for start in range(low, high, step))

    def _cut(
        self, some: _Queries, start: int, stop: int, *, causal: bool = False, moved: int = 0
    ) -> _Keys:
        """Return keys of some positions of a row, which to the queries are ``moved`` less."""
        row, tile = slice(some.row, some.row + 1), self.tile
        if start < tile.start:
            place = (row, slice(None), slice(start, stop))
            k, v, name = tile.before.k, tile.before.v, "past"
        else:
            assert self.own is not None
            place = (row, slice(None), slice(start - tile.start, stop - tile.start))
            (k, v), name = self.own, "own"
        return _Keys(k[place], v[place], start - moved, causal, (name, place))


def _softmax(
    some: _Queries, pieces: _Pieces, q: Tensor, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the output (1, H, n, h) of some queries and their log-sum-exp (1, H, n), float32."""
    wide = q[some.place].to(pieces.dtype)
    found: tuple[Tensor, Tensor] | None = None
    for keys in pieces.keys(some):
        k, v = keys.k.to(pieces.dtype), keys.v.to(pieces.dtype)
        if pieces.kernel:
            part = kernel(wide, k, v, pieces.rule.scale, causal=keys.causal)
        else:
            part = scored(wide, k, v, pieces.rule, some.seen(keys))
        found = part if found is None else joined(found, part)
        del k, v, part
    assert found is not None
    if sinks is None:
        return found
    out, log_sum = found
    whole = torch.logaddexp(log_sum, sinks.float()[:, None])
    return out.mul_((log_sum - whole).exp_()[..., None]), whole


def _back(
    some: _Queries, pieces: _Pieces, saved: tuple[Tensor, Tensor, Tensor], sums: Tensor,
    gathered: _Gathered,
) -> Tensor:  # fmt: skip
    """Return the gradient (1, H, n, h) of some queries; ``saved`` is its own, queries, output."""
    grad, q, out = (x[some.place].to(pieces.dtype) for x in saved)
    log_sum, total = sums[some.place].contiguous(), None
    for keys in pieces.keys(some):
        k, v = keys.k.to(pieces.dtype), keys.v.to(pieces.dtype)
        if pieces.kernel:
            parts = kernel_back(
                grad, (q, k, v), (out, log_sum), pieces.rule.scale, causal=keys.causal
            )
        else:
            parts = scored_back(grad, (q, k, v), (out, log_sum), pieces.rule, some.seen(keys))
        del k, v
        gathered.add(keys.target, parts[1], parts[2])
        total = parts[0] if total is None else total.add_(parts[0])
        del parts
    assert total is not None
    return total


class _Gathered:
    """The gradients of keys and values, which come piece by piece."""

    def __init__(self, k: Tensor, front: Tensor | None, tile: Tile) -> None:
        self._grads = {"own": _zeros(k), "past": (tile.before.k_grad, tile.before.v_grad)}
        if front is not None:
            self._grads["front"] = _zeros(front)

    def add(self, target: tuple[str, tuple[slice, ...]], k_grad: Tensor, v_grad: Tensor) -> None:
        name, place = target
        for whole, part in zip(self._grads[name], (k_grad, v_grad), strict=True):
            if whole is not None:
                whole[place] += part

    def results(self, dtype: torch.dtype) -> Iterator[Tensor | None]:
        """Yield the gradients of the tile's own and of what is in front."""
        for name in ("own", "front"):
            for grad in self._grads.get(name, (None, None)):
                yield None if grad is None else grad.to(dtype)


def _fused(rule: Attention, keys: int, q: Tensor) -> bool:
    """Tell whether a kernel attends as the rule says, to so many keys."""
    plain = rule.softcap is None and not rule.slopes and rule.sinks is None
    if not plain or (rule.window is not None and rule.window < keys):
        return False
    if q.device.type == "cpu":
        return True
    size = q.shape[-1]
    return (
        q.dtype != torch.float32
        and attends(q.dtype, q.device)
        and size % 8 == 0
        and size <= WIDEST_HEAD
    )


def _zeros(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(x.shape, device=x.device), torch.zeros(x.shape, device=x.device)
