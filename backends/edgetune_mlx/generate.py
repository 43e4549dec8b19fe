"""Text, one token at a time for all prompts at once, over cached keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from edgetune.backend import GenerateOptions
from edgetune.data.batch import prompt_batch
from edgetune.network.adaptation import Adaptation
from edgetune.network.mixed import mixed
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.loss import Head
from edgetune_mlx.token_layout import Cache, TokenLayout


@dataclass(slots=True)
class Row:
    """A prompt that is being continued, and the tokens that were found for it."""

    number: int
    prompt: Sequence[int]
    method: Adaptation[mx.array]
    cache: Cache
    key: mx.array
    found: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions that a pass with the last token found will have seen."""
        return self.cache.length + self.method.positions + 1


def generate(
    decoder: Decoder,
    head: Head,
    prompts: Sequence[Sequence[int]],
    methods: Sequence[Adaptation[mx.array]],
    options: GenerateOptions,
) -> Iterator[tuple[int, int]]:
    """Yield the number of a prompt and its next token, at most ``max_tokens`` for each."""
    if decoder.shape.rotates_by_length and len(prompts) > 1:
        for number, (prompt, method) in enumerate(zip(prompts, methods, strict=True)):
            for _, token in generate(decoder, head, [prompt], [method], options):
                yield number, token
        return
    seen = {id(method): number for number, method in reversed(list(enumerate(methods)))}
    order = sorted(range(len(prompts)), key=lambda number: seen[id(methods[number])])
    rows = [new_row(decoder, number, prompts[number], methods[number], options) for number in order]
    logits = _first(decoder, head, rows)
    for count in range(1, options.max_tokens + 1):
        for row, found in zip(rows, logits, strict=True):
            row.key, now = mx.random.split(row.key)
            row.found.append(_choose(found, options, now))
            yield row.number, row.found[-1]
        rows = [row for row in rows if _goes_on(row, decoder.shape.last_length, options)]
        if not rows or count == options.max_tokens:
            return
        # one more token and LongRoPE would have rotated all that is cached otherwise
        anew = any(row.length - 1 in decoder.shape.rotation_changes for row in rows)
        logits = (_first if anew else _next)(decoder, head, rows)


def _first(decoder: Decoder, head: Head, rows: Sequence[Row]) -> mx.array:
    """Return the logits (B, V) after prompts and what was found, which join the caches anew."""
    for row in rows:
        row.cache.length = 0
    method, caches = mixed([row.method for row in rows]), [row.cache for row in rows]
    told = prompt_batch([[*row.prompt, *row.found] for row in rows])
    batch, layout = decoder.placed(told, method, caches)
    for cache, (length,) in zip(caches, batch.documents, strict=True):
        cache.arriving = length
    x = _hidden(decoder, mx.array(batch.tokens), layout, method)
    last = mx.array([cache.length - 1 for cache in caches])
    return head.logits(decoder.final_norm(x[mx.arange(len(caches)), last], method))


def _next(decoder: Decoder, head: Head, rows: Sequence[Row]) -> mx.array:
    """Return the logits (B, V) after each row's last token, which joins its cache."""
    method = mixed([row.method for row in rows])
    positions = [row.cache.length + row.method.positions for row in rows]
    for row in rows:
        row.cache.arriving = 1
    layout = TokenLayout(
        positions=mx.array(positions)[:, None],
        documents=None,
        context=decoder.shape.reached(max(positions) + 1),
        first=positions[0] if len(set(positions)) == 1 else None,
        caches=[row.cache for row in rows],
    )
    tokens = mx.array([[row.found[-1]] for row in rows], mx.int32)
    x = _hidden(decoder, tokens, layout, method)
    return head.logits(decoder.final_norm(x[:, -1], method))


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


def _goes_on(row: Row, last: int | None, options: GenerateOptions) -> bool:
    """Tell whether a prompt gets a further token; ``last`` is the model's last position."""
    return row.found[-1] not in options.end_tokens and (last is None or row.length <= last)


def _choose(logits: mx.array, options: GenerateOptions, key: mx.array) -> int:
    if options.greedy:
        return int(np.array(mx.argmax(logits)))
    order = mx.argsort(-logits)
    probability = mx.softmax(logits[order] / options.temperature, precise=True)
    before = mx.cumsum(probability) - probability
    kept = mx.where(before < options.top_p, mx.log(probability), -mx.inf)  # always the first
    return int(np.array(order[mx.random.categorical(kept, key=key)]))


def new_row(
    decoder: Decoder,
    number: int,
    prompt: Sequence[int],
    method: Adaptation[mx.array],
    options: GenerateOptions,
) -> Row:
    """Return a prompt with a cache for all of its tokens and those of its answer."""
    shape = decoder.shape
    capacity = method.virtual_tokens + len(prompt) + options.max_tokens
    sizes = [(1, block.kv_heads, capacity, block.head_dim) for block in shape.blocks]

    def arrays() -> list[mx.array]:
        return [mx.zeros(size, decoder.dtype) for size in sizes]

    cache = Cache(arrays(), arrays(), [None for _ in sizes])
    return Row(number, prompt, method, cache, mx.random.key(options.seed))
