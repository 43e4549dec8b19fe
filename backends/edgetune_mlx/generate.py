"""Reading the next tokens of rows behind what is cached of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.data.batch import prompt_batch
from edgetune.network.adaptation import BASE, Adaptation
from edgetune.network.mixed import mixed
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.loss import Head
from edgetune_mlx.token_layout import Cache, TokenLayout


def read(decoder: Decoder, head: Head, rows: Sequence[tuple[Cache, Sequence[int]]]) -> mx.array:
    """Return the logits (B, V) after each row's last token; all of them join the caches."""
    if decoder.tile and any(len(own) > decoder.tile for _, own in rows):
        return mx.concatenate([_in_pieces(decoder, head, *row) for row in rows])
    return _read(decoder, head, rows)


def _in_pieces(decoder: Decoder, head: Head, cache: Cache, tokens: Sequence[int]) -> mx.array:
    """Return the logits (1, V) after a row, of which a tile is read behind the cache at a time."""
    for piece, context in _pieces(decoder, cache, tokens):
        logits = _read(decoder, head, [(cache, piece)], context)
    return logits


def _pieces(
    decoder: Decoder, cache: Cache, tokens: Sequence[int]
) -> Iterator[tuple[Sequence[int], int]]:
    """Yield the tokens of a row, a tile at a time.

    As far as the rotation depends on the length of a row, it is that of all tokens.
    """
    _, whole = decoder.placed(prompt_batch([tokens]), cache.method, [cache])
    size = decoder.tile or len(tokens)
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size], whole.context


def _read(
    decoder: Decoder, head: Head, rows: Sequence[tuple[Cache, Sequence[int]]],
    context: int | None = None,
) -> mx.array:  # fmt: skip
    """Return the logits (B, V) after each row's last token, all tokens read at once."""
    caches = [cache for cache, _ in rows]
    method, x = _joined(decoder, rows, context)
    last = mx.array([cache.arriving - 1 for cache in caches])
    states = decoder.final_norm(x[mx.arange(len(caches)), last], method)
    return head.logits_of_rows(states, method)


def _joined(
    decoder: Decoder, rows: Sequence[tuple[Cache, Sequence[int]]], context: int | None = None
) -> tuple[Adaptation[mx.array], mx.array]:
    """Let tokens join the caches; return the rows' method and the last block's outputs."""
    caches, tokens = [cache for cache, _ in rows], [own for _, own in rows]
    method = mixed([cache.method for cache in caches])
    batch, layout = decoder.placed(prompt_batch(tokens), method, caches)
    if context is not None:
        layout.context = context
    for cache, (count,) in zip(caches, batch.documents, strict=True):
        cache.arriving = count
    return method, _hidden(decoder, mx.array(batch.tokens), layout, method)


def keys_values(decoder: Decoder, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return what a cache of the base holds of tokens (P), (P, numbers).

    Layer after layer: the keys of all heads, then their values.
    """
    cache = new_cache(decoder, BASE, len(tokens))
    for piece, context in _pieces(decoder, cache, tokens):
        _joined(decoder, [(cache, piece)], context)
    held = [x for pair in zip(cache.keys, cache.values, strict=True) for x in pair]
    found = np.empty((len(tokens), sum(x.shape[1] * x.shape[3] for x in held)), np.float32)
    start = 0
    for x in held:  # (1, G, P, h)
        stop = start + x.shape[1] * x.shape[3]
        flat = x[0].swapaxes(0, 1).reshape(len(tokens), stop - start)
        found[:, start:stop] = np.array(flat.astype(mx.float32))
        start = stop
    return found


def _hidden(
    decoder: Decoder, tokens: mx.array, layout: TokenLayout, method: Adaptation[mx.array]
) -> mx.array:
    """Return the output of the last block (B, S, D); the caches hold what arrived."""
    x = decoder.embed(tokens, layout, method)
    for layer in range(decoder.shape.layers):
        x = decoder.block(layer, x, layout, method)
        carried = [cache.carried[layer] for cache in layout.caches]
        mx.eval(x, carried, layout.lent.get(layer, ()))  # a streamed block is gone
    for cache in layout.caches:
        cache.length += cache.arriving
    return x


def new_cache(decoder: Decoder, method: Adaptation[mx.array], capacity: int) -> Cache:
    """Return an empty cache for a row of ``capacity`` tokens, and the method's own."""
    capacity += method.virtual_tokens
    sizes = [(1, block.kv_heads, capacity, block.head_dim) for block in decoder.shape.blocks]

    def arrays() -> list[mx.array]:
        return [mx.zeros(size, decoder.dtype) for size in sizes]

    return Cache(arrays(), arrays(), [None for _ in sizes], method)
