"""Reading the next tokens of rows behind what is cached of them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from edgetune.data.batch import prompt_batch
from edgetune.network.adaptation import Adaptation
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
    """Return the logits (1, V) after a row, of which a tile is read behind the cache at a time.

    As far as the rotation depends on the length of a row, it is that of all tokens.
    """
    _, whole = decoder.placed(prompt_batch([tokens]), cache.method, [cache])
    for start in range(0, len(tokens), decoder.tile):
        piece = tokens[start : start + decoder.tile]
        logits = _read(decoder, head, [(cache, piece)], context=whole.context)
    return logits


def _read(
    decoder: Decoder, head: Head, rows: Sequence[tuple[Cache, Sequence[int]]],
    context: int | None = None,
) -> mx.array:  # fmt: skip
    """Return the logits (B, V) after each row's last token, all tokens read at once."""
    caches, tokens = [cache for cache, _ in rows], [own for _, own in rows]
    method = mixed([cache.method for cache in caches])
    batch, layout = decoder.placed(prompt_batch(tokens), method, caches)
    if context is not None:
        layout.context = context
    for cache, (count,) in zip(caches, batch.documents, strict=True):
        cache.arriving = count
    x = _hidden(decoder, mx.array(batch.tokens), layout, method)
    last = mx.array([cache.arriving - 1 for cache in caches])
    states = decoder.final_norm(x[mx.arange(len(caches)), last], method)
    return head.logits_of_rows(states, method)


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
