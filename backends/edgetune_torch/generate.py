"""Reading the next tokens of rows behind what is cached of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgetune.data.batch import prompt_batch
from edgetune.network.adaptation import Adaptation
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
    caches, tokens = [cache for cache, _ in rows], [own for _, own in rows]
    method = mixed([cache.method for cache in caches])
    batch, layout = decoder.placed(prompt_batch(tokens), method, caches)
    x = decoder.hidden(
        torch.from_numpy(batch.tokens).to(decoder.weights.device).long(), layout, method
    )
    counts = [count for (count,) in batch.documents]
    for cache, count in zip(caches, counts, strict=True):
        cache.length += count
    last = torch.tensor(counts, device=x.device) - 1
    states = decoder.final_norm(x[torch.arange(len(x), device=x.device), last], method)
    return head.logits_of_rows(states, method)


def _in_pieces(decoder: Decoder, head: Head, cache: Cache, tokens: Sequence[int]) -> Tensor:
    """Return the logits (1, V) after a row, of which a tile is read behind the cache at a time."""
    for start in range(0, len(tokens), decoder.tile):
        logits = read(decoder, head, [(cache, tokens[start : start + decoder.tile])])
    return logits


def new_cache(decoder: Decoder, method: Adaptation[Tensor], capacity: int) -> Cache:
    """Return an empty cache for a row of ``capacity`` tokens, and the method's own."""
    capacity, device = capacity + method.virtual_tokens, decoder.weights.device
    sizes = [(1, block.kv_heads, capacity, block.head_dim) for block in decoder.shape.blocks]

    def tensors() -> list[Tensor]:
        return [torch.empty(size, dtype=decoder.dtype, device=device) for size in sizes]

    return Cache(tensors(), tensors(), [None for _ in sizes], method)
