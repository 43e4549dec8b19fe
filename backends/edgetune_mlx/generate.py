"""Text, one token at a time, over cached keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from edgetune.backend import GenerateOptions
from edgetune.data.virtual import PLACEHOLDER
from edgetune_mlx.adaptation import Adaptation
from edgetune_mlx.decoder import Cache, Decoder, Place
from edgetune_mlx.loss import Head


def generate(
    decoder: Decoder,
    head: Head,
    method: Adaptation,
    prompt: Sequence[int],
    options: GenerateOptions,
) -> Iterator[int]:
    """Yield the tokens that follow ``prompt``, at most ``max_tokens``, an end token included."""
    row = [PLACEHOLDER] * method.virtual_tokens + list(prompt)
    cache = _empty_cache(decoder, len(row) + options.max_tokens)
    key = mx.random.key(options.seed)
    tokens = mx.array([row], mx.int32)
    for _ in range(options.max_tokens):
        logits = _next_logits(decoder, head, method, tokens, cache)
        key, now = mx.random.split(key)
        token = _choose(logits, options, now)
        yield token
        if token in options.end_tokens:
            return
        tokens = mx.array([[token]], mx.int32)


def _next_logits(
    decoder: Decoder, head: Head, method: Adaptation, tokens: mx.array, cache: Cache
) -> mx.array:
    """Return the logits (V,) after ``tokens`` (1, S), which join the cache."""
    stop = cache.length + tokens.shape[1]
    place = Place.row(cache.length, stop, method.positions, cache)
    x = decoder.embed(tokens, place, method)
    for layer in range(decoder.shape.layers):
        x = decoder.block(layer, x, place, method)
        mx.eval(x)  # a streamed block is gone before the next one comes
    cache.length = stop
    return head.logits(decoder.final_norm(x[:, -1], method))[0]


def _choose(logits: mx.array, options: GenerateOptions, key: mx.array) -> int:
    if options.temperature == 0:
        return int(np.array(mx.argmax(logits)))
    order = mx.argsort(-logits)
    probability = mx.softmax(logits[order] / options.temperature, precise=True)
    before = mx.cumsum(probability) - probability
    kept = mx.where(before < options.top_p, mx.log(probability), -mx.inf)  # always the first
    return int(np.array(order[mx.random.categorical(kept, key=key)]))


def _empty_cache(decoder: Decoder, capacity: int) -> Cache:
    shape = decoder.shape
    size = (1, shape.kv_heads, capacity, shape.head_dim)

    def arrays() -> list[mx.array]:
        return [mx.zeros(size, decoder.dtype) for _ in range(shape.layers)]

    return Cache(arrays(), arrays())
