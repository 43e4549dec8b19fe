"""Text, one token at a time for all prompts at once, over cached keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgetune.backend import GenerateOptions
from edgetune.data.batch import prompt_batch
from edgetune.network.adaptation import Adaptation
from edgetune.network.mixed import mixed
from edgetune_torch.decoder import Decoder
from edgetune_torch.loss import Head
from edgetune_torch.token_layout import Cache, TokenLayout


@dataclass(slots=True)
class Row:
    """A prompt that is being continued, and the tokens that were found for it."""

    number: int
    prompt: Sequence[int]
    method: Adaptation[Tensor]
    cache: Cache
    draws: torch.Generator
    found: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions that a pass with the last token found will have seen."""
        return self.cache.length + self.method.positions + 1


def generate(
    decoder: Decoder,
    head: Head,
    prompts: Sequence[Sequence[int]],
    methods: Sequence[Adaptation[Tensor]],
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
            row.found.append(_choose(found, options, row.draws))
            yield row.number, row.found[-1]
        rows = [row for row in rows if _goes_on(row, decoder.shape.last_length, options)]
        if not rows or count == options.max_tokens:
            return
        # one more token and LongRoPE would have rotated all that is cached otherwise
        anew = any(row.length - 1 in decoder.shape.rotation_changes for row in rows)
        logits = (_first if anew else _next)(decoder, head, rows)


@torch.no_grad()
def _first(decoder: Decoder, head: Head, rows: Sequence[Row]) -> Tensor:
    """Return the logits (B, V) after prompts and what was found, which join the caches anew."""
    for row in rows:
        row.cache.length = 0
    method = mixed([row.method for row in rows])
    caches = [row.cache for row in rows]
    told = prompt_batch([[*row.prompt, *row.found] for row in rows])
    batch, layout = decoder.placed(told, method, caches)
    tokens = torch.from_numpy(batch.tokens).to(decoder.weights.device).long()
    x = decoder.hidden(tokens, layout, method)
    for cache, (length,) in zip(caches, batch.documents, strict=True):
        cache.length = length
    last = torch.tensor([cache.length - 1 for cache in caches], device=x.device)
    return head.logits(decoder.final_norm(x[torch.arange(len(x), device=x.device), last], method))


@torch.no_grad()
def _next(decoder: Decoder, head: Head, rows: Sequence[Row]) -> Tensor:
    """Return the logits (B, V) after each row's last token, which joins its cache."""
    method, device = mixed([row.method for row in rows]), decoder.weights.device
    lengths = torch.tensor([[row.length] for row in rows], device=device)
    layout = TokenLayout(
        positions=lengths - 1,
        documents=((1,),) * len(rows),
        dtype=decoder.dtype,
        lengths=lengths,
        caches=[row.cache for row in rows],
    )
    tokens = torch.tensor([[row.found[-1]] for row in rows], device=device)
    x = decoder.hidden(tokens, layout, method)
    for row in rows:
        row.cache.length += 1
    return head.logits(decoder.final_norm(x[:, -1], method))


def _goes_on(row: Row, last: int | None, options: GenerateOptions) -> bool:
    """Tell whether a prompt gets a further token; ``last`` is the model's last position."""
    return row.found[-1] not in options.end_tokens and (last is None or row.length <= last)


def _choose(logits: Tensor, options: GenerateOptions, generator: torch.Generator) -> int:
    if options.greedy:
        return int(logits.argmax())
    probability, order = (logits / options.temperature).softmax(-1).sort(descending=True)
    beyond = probability.cumsum(-1) - probability >= options.top_p  # always keeps the first
    probability = probability.masked_fill(beyond, 0)
    return int(order[torch.multinomial(probability, 1, generator=generator)])


def new_row(
    decoder: Decoder,
    number: int,
    prompt: Sequence[int],
    method: Adaptation[Tensor],
    options: GenerateOptions,
) -> Row:
    """Return a prompt with a cache for all of its tokens and those of its answer."""
    shape, device = decoder.shape, decoder.weights.device
    capacity = method.virtual_tokens + len(prompt) + options.max_tokens
    sizes = [(1, block.kv_heads, capacity, block.head_dim) for block in shape.blocks]

    def tensors() -> list[Tensor]:
        return [torch.empty(size, dtype=decoder.dtype, device=device) for size in sizes]

    draws = torch.Generator(device).manual_seed(options.seed)
    return Row(number, prompt, method, Cache(tensors(), tensors(), [None for _ in sizes]), draws)
