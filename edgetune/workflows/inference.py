"""Runs, adapters and models put to use: answers to many prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence

from edgetune.backend import GenerateOptions
from edgetune.data.template import Message
from edgetune.generation import Generation, Row
from edgetune.workflows.opened import Opened, TextStream, fitting

Asked = Sequence[tuple[Opened, list[int]]]
"""Prompts, each with who is to answer it, all over one base."""


def answers(
    runs: Sequence[Opened], prompts: Sequence[str | Sequence[Message]], options: GenerateOptions
) -> Iterator[str]:
    """Yield the answers of runs over one base: all of the first prompt, then of the next.

    Prompts and runs are computed together, as many as the first run's plan has memory for.
    """
    asked = [(run, run.prompt_tokens(prompt)) for prompt in prompts for run in runs]
    for tokens in continued(asked, options):
        yield runs[0].tokenizer.decode(tokens)


def streamed(
    asked: Asked, options: GenerateOptions, generation: Generation | None = None
) -> Generator[tuple[int, str], None, None]:
    """Yield pieces of the answers to prompts, each with the number of its prompt, as they come.

    They are computed together, as many as the first plan has memory for; in a ``generation`` that
    keeps caches, they go on from them.
    """
    texts = [TextStream(one.tokenizer) for one, _ in asked]
    for number, token in _tokens(asked, options, generation):
        piece = texts[number].rest() if token is None else texts[number].add(token)
        if piece:
            yield number, piece


def continued(asked: Asked, options: GenerateOptions) -> Iterator[list[int]]:
    """Yield the tokens after each prompt, without the one that ends them."""
    found: list[list[int]] = [[] for _ in asked]
    ended, told = set(), 0
    for number, token in _tokens(asked, options):
        if token is not None:
            found[number].append(token)
            continue
        ended.add(number)
        while told in ended:
            yield found[told]
            told += 1


def _tokens(
    asked: Asked, options: GenerateOptions, generation: Generation | None = None
) -> Generator[tuple[int, int | None], None, None]:
    """Yield the tokens that follow prompts, each with its prompt's number, and at the end None.

    The token that ends an answer is left out.
    """
    run = asked[0][0]
    generation = run.generation() if generation is None else generation
    rows = [
        Row(prompt, one.within_positions(options, len(prompt)), one.adapter)
        for one, prompt in asked
    ]
    waiting, numbers = deque(rows), {row: number for number, row in enumerate(rows)}
    longest = max(rows, key=lambda row: row.capacity)
    try:
        while waiting or generation.rows:
            while waiting and generation.admits(waiting[0]):
                generation.add(waiting.popleft())
            running = list(generation.rows)
            with fitting(run, len(longest.prompt), longest.options):
                for row, token in generation.step():
                    if token not in options.end_tokens:
                        yield numbers[row], token
            yield from ((numbers[row], None) for row in running if row not in generation.rows)
    finally:
        for row in list(generation.rows):
            generation.remove(row)
