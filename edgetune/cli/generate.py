"""``edgetune generate``: text from runs, adapters and models."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from typing import Any

import click

from edgetune.backend import GenerateOptions
from edgetune.cli.options import Ref, common_options, over_options, some_knob_options
from edgetune.cli.show import VERBOSE, out, out_json, say, stream
from edgetune.errors import UsageError
from edgetune.escapes import without
from edgetune.workflows.ensemble import vote
from edgetune.workflows.inference import answers
from edgetune.workflows.opened import Opened
from edgetune.workflows.over import Over
from edgetune.workflows.references import opened_references

VOTE = "vote"
"""What the answer of several adapters is called among the answers of each."""

Question = str | list[dict[str, str]]


@click.command("generate", short_help="Generate text with runs, adapters or models.")
@click.argument("names", type=Ref(), nargs=-1, required=True, metavar="REF...")
@click.option("-p", "--prompt", "prompts", multiple=True, help="A prompt; may be repeated.")
@click.option("--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as text, without chat template.")
@click.option("--base", is_flag=True, help="Answer with the base model, without the adapter.")
@click.option("--vote", "as_one", is_flag=True, help="Print the answer that most REFs give.")
@over_options
@some_knob_options(spec=GenerateOptions)
@common_options
def command(
    names: tuple[str, ...],
    prompts: tuple[str, ...],
    system: str | None,
    raw: bool,
    base: bool,
    as_one: bool,
    over: Over,
    as_json: bool,
    **flags: Any,
) -> None:
    """Print the answer of each REF to each prompt; without -p, to the text on stdin.

    A REF is a run's folder, an adapter's (over its own base or --model), or a model. Several must
    be over the same base model, which is loaded once; their answers are computed together.
    """
    if raw and system is not None:
        raise UsageError("--raw uses no chat template: --system would be ignored.")
    if base and len(names) > 1:
        raise UsageError("--base leaves the adapters out: give one REF.")
    if as_one and len(names) < 2:
        raise UsageError("--vote needs several REFs. Name another one.")
    options = GenerateOptions(**{name: value for name, value in flags.items() if value is not None})
    with opened_references(names, over) as opened:
        _answer(
            opened,
            names,
            prompts,
            system,
            options,
            raw=raw,
            base=base,
            as_one=as_one,
            as_json=as_json,
        )


def _answer(
    opened: list[Opened],
    names: tuple[str, ...],
    prompts: tuple[str, ...],
    system: str | None,
    options: GenerateOptions,
    *,
    raw: bool,
    base: bool,
    as_one: bool,
    as_json: bool,
) -> None:
    """Print the answers of what was opened."""
    for one in opened:
        say(f"Opened {one.model.folder} for {one.name}", level=VERBOSE)
        for notice in one.notices:
            say(notice)
    if base:
        opened = [opened[0].base()]
    options = replace(options, end_tokens=opened[0].tokenizer.end_tokens)
    special = opened[0].tokenizer.special_texts
    texts = prompts or (_from_stdin(),)
    questions = [prompt if raw else _chat(prompt, system) for prompt in texts]
    if len(opened) == len(questions) == 1 and not as_json:
        stream(without(piece, special) for piece in opened[0].generate(questions[0], options))
        return
    said = list(zip(product(texts, names), answers(opened, questions, options), strict=True))
    found = []
    for start in range(0, len(said), len(names)):
        (prompt, _), _ = said[start]
        told = [(name, text) for (_, name), text in said[start : start + len(names)]]
        if as_one:
            told = [(VOTE, vote([text for _, text in told]))]
        for name, text in told:
            if not as_json:
                read = without(text, special)
                out(read if len(told) == 1 else f"{name}: {read}")
            found.append({"run": name, "prompt": prompt, "text": text})
    if as_json:
        out_json(found)


def _chat(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _from_stdin() -> str:
    text = "" if sys.stdin is None else sys.stdin.read().strip()
    if not text:
        raise UsageError("There is no prompt. Give -p TEXT, or text on stdin.")
    return text
