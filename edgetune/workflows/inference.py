"""Runs, adapters and models put to use: answers to many prompts."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from edgetune.backend import GenerateOptions
from edgetune.data.template import Message
from edgetune.memory.generation import rows_at_once
from edgetune.workflows.opened import Opened, TextStream, fitting


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
    asked: Sequence[tuple[Opened, list[int]]], options: GenerateOptions
) -> Generator[tuple[int, str], None, None]:
    """Yield pieces of the answers to prompts, each with the number of its prompt, as they come.

    They are computed together, as many as the first plan has memory for.
    """
    texts = [TextStream(one.tokenizer) for one, _ in asked]
    for numbers, tokens in _together(asked, options):
        for number, token in tokens:
            if token not in options.end_tokens and (piece := texts[number].add(token)):
                yield number, piece
        yield from ((number, rest) for number in numbers if (rest := texts[number].rest()))


def continued(
    asked: Sequence[tuple[Opened, list[int]]], options: GenerateOptions
) -> Iterator[list[int]]:
    """Yield the tokens after each prompt, without the one that ends them."""
    for numbers, tokens in _together(asked, options):
        found: dict[int, list[int]] = {number: [] for number in numbers}
        for number, token in tokens:
            if token not in options.end_tokens:
                found[number].append(token)
        yield from found.values()


def _together(
    asked: Sequence[tuple[Opened, list[int]]], options: GenerateOptions
) -> Iterator[tuple[range, Iterator[tuple[int, int]]]]:
    """Yield which prompts are continued together, and their tokens with a prompt's number each."""
    run = asked[0][0]
    longest = max(len(prompt) for _, prompt in asked)
    options = max(
        (one.within_positions(options, len(prompt)) for one, prompt in asked),
        key=lambda found: found.max_tokens,
    )
    count = rows_at_once(
        run.model.shape, run.plan.choice, run.plan.memory, prompt=longest, answer=options.max_tokens
    )

    def tokens(start: int) -> Iterator[tuple[int, int]]:
        part = asked[start : start + count]
        prompts, adapters = [prompt for _, prompt in part], [one.adapter for one, _ in part]
        with fitting(run, longest, options):
            for row, token in run.session.generate(prompts, options, adapters=adapters):
                yield start + row, token

    for start in range(0, len(asked), count):
        yield range(start, min(start + count, len(asked))), tokens(start)
