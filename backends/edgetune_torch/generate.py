"""Text, one token at a time, over cached keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgetune.backend import GenerateOptions
from edgetune.data.virtual import PLACEHOLDER
from edgetune_torch.adaptation import Adaptation
from edgetune_torch.decoder import Cache, Decoder, Place
from edgetune_torch.loss import Head


def generate(
    decoder: Decoder,
    head: Head,
    method: Adaptation,
    prompt: Sequence[int],
    options: GenerateOptions,
) -> Iterator[int]:
    """Yield the tokens that follow ``prompt``, at most ``max_tokens``, an end token included."""
    device = decoder.weights.device
    generator = torch.Generator(device).manual_seed(options.seed)
    row = [PLACEHOLDER] * method.virtual_tokens + list(prompt)
    cache = _empty_cache(decoder, len(row) + options.max_tokens, device)
    tokens = torch.tensor([row], device=device)
    for _ in range(options.max_tokens):
        logits = _next_logits(decoder, head, method, tokens, cache)
        token = _choose(logits, options, generator)
        yield token
        if token in options.end_tokens:
            return
        tokens = torch.tensor([[token]], device=device)


@torch.no_grad()
def _next_logits(
    decoder: Decoder, head: Head, method: Adaptation, tokens: Tensor, cache: Cache
) -> Tensor:
    """Return the logits (V,) after ``tokens`` (1, S), which join the cache."""
    stop = cache.length + tokens.shape[1]
    positions = torch.arange(cache.length, stop, device=tokens.device)[None]
    place = Place(
        positions=positions + method.positions,
        documents=((tokens.shape[1],),),
        dtype=decoder.dtype,
        context=stop + method.positions,
        cache=cache,
    )
    x = decoder.hidden(tokens, place, method)
    cache.length = stop
    return head.logits(decoder.final_norm(x[:, -1], method))[0]


def _choose(logits: Tensor, options: GenerateOptions, generator: torch.Generator) -> int:
    if options.temperature == 0:
        return int(logits.argmax())
    probability, order = (logits / options.temperature).softmax(-1).sort(descending=True)
    beyond = probability.cumsum(-1) - probability >= options.top_p  # always keeps the first
    probability = probability.masked_fill(beyond, 0)
    return int(order[torch.multinomial(probability, 1, generator=generator)])


def _empty_cache(decoder: Decoder, capacity: int, device: torch.device) -> Cache:
    shape = decoder.shape
    size = (1, shape.kv_heads, capacity, shape.head_dim)

    def tensors() -> list[Tensor]:
        return [torch.empty(size, dtype=decoder.dtype, device=device) for _ in range(shape.layers)]

    return Cache(tensors(), tensors())
