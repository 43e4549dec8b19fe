"""Reading the next tokens of rows behind what is cached of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.data.batch import prompt_batch
from edgetune.network.adaptation import BASE, Adaptation
from edgetune.network.mixed import mixed
from edgetune_torch.decoder import Decoder
from edgetune_torch.loss import Head
from edgetune_torch.token_layout import Cache


@torch.no_grad()
def read(decoder: Decoder, head: Head, rows: Sequence[tuple[Cache, Sequence[int]]]) -> Tensor:
    """Return the logits (B, V) after each row's last token; all of them join the caches."""
    tile, carries = decoder.tile, decoder.shape.reach > 0
    if tile and any((cache.length or carries) and len(own) > tile for cache, own in rows):
        return torch.cat([_in_pieces(decoder, head, *row) for row in rows])
    method, x, counts = _read(decoder, rows)
    last = torch.tensor(counts, device=x.device) - 1
    states = decoder.final_norm(x[torch.arange(len(x), device=x.device), last], method)
    return head.logits_of_rows(states, method)


def _read(
    decoder: Decoder, rows: Sequence[tuple[Cache, Sequence[int]]]
) -> tuple[Adaptation[Tensor], Tensor, list[int]]:
    """Let tokens join the caches; return the rows' method, the last block's outputs, their numbers."""
    caches, tokens = [cache for cache, _ in rows], [own for _, own in rows]
    method = mixed([cache.method for cache in caches])
    batch, layout = decoder.placed(prompt_batch(tokens), method, caches)
    x = decoder.hidden(
        torch.from_numpy(batch.tokens).to(decoder.weights.device).long(), layout, method
    )
    counts = [count for (count,) in batch.documents]
    for cache, count in zip(caches, counts, strict=True):
        cache.length += count
    return method, x, counts


@torch.no_grad()
def filled(decoder: Decoder, tokens: Sequence[int]) -> Cache:
    """Return a cache in which the base has read tokens, a tile at a time."""
    cache = new_cache(decoder, BASE, len(tokens))
    for piece in _pieces(decoder, tokens):
        _read(decoder, [(cache, piece)])
    return cache


def keys_values(decoder: Decoder, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return what a cache of the base holds of tokens (P), (P, numbers).

    Layer after layer: the keys of all heads, then their values.
    """
    cache = filled(decoder, tokens)
    held = [x for pair in zip(cache.keys, cache.values, strict=True) for x in pair]
    found = np.empty((len(tokens), sum(x.shape[1] * x.shape[3] for x in held)), np.float32)
    start = 0
    for x in held:  # (1, G, P, h)
        stop = start + x.shape[1] * x.shape[3]
        found[:, start:stop] = x[0].transpose(0, 1).flatten(1).float().cpu().numpy()
        start = stop
    return found


def _in_pieces(decoder: Decoder, head: Head, cache: Cache, tokens: Sequence[int]) -> Tensor:
    """Return the logits (1, V) after a row, of which a tile is read behind the cache at a time."""
    for piece in _pieces(decoder, tokens):
        logits = read(decoder, head, [(cache, piece)])
    return logits


def _pieces(decoder: Decoder, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the tokens of a row, a tile at a time."""
    size = decoder.tile or len(tokens)
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def new_cache(decoder: Decoder, method: Adaptation[Tensor], capacity: int) -> Cache:
    """Return an empty cache for a row of ``capacity`` tokens, and the method's own."""
    capacity, device = capacity + method.virtual_tokens, decoder.weights.device
    sizes = [(1, block.kv_heads, capacity, block.head_dim) for block in decoder.shape.blocks]

    def tensors() -> list[Tensor]:
        return [torch.empty(size, dtype=decoder.dtype, device=device) for size in sizes]

    return Cache(tensors(), tensors(), [None for _ in sizes], method)
