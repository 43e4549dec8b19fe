"""``edgetune generate``: text from a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgetune.agent.using import open_run
from edgetune.backend import GenerateOptions
from edgetune.cli.options import common_options
from edgetune.cli.show import VERBOSE, out_json, say
from edgetune.errors import UsageError


@click.command("generate", short_help="Let a run answer a prompt.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", "prompts", multiple=True, help="A prompt; may be repeated.")
@click.option("--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as text, without chat template.")
@click.option("--base", is_flag=True, help="Answer by the base model, without the adapter.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How freely tokens are drawn; 0 takes the most probable ones.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1),
    default=1.0,
    show_default=True,
    help="Draw from the most probable tokens that make up this share.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draws."
)
@common_options
def command(
    run: Path,
    prompts: tuple[str, ...],
    system: str | None,
    raw: bool,
    base: bool,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    as_json: bool,
) -> None:
    """Print the answer of a RUN to each prompt; without -p, to the text on stdin."""
    if raw and system is not None:
        raise UsageError("--raw uses no chat template, so that --system would be lost.")
    opened = open_run(run)
    say(f"Opened {opened.model.folder} with {opened.folder.adapter}", level=VERBOSE)
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        end_tokens=opened.tokenizer.end_tokens,
    )
    answers = []
    for prompt in prompts or (_from_stdin(),):
        question = prompt if raw else _chat(prompt, system)
        parts = []
        for part in opened.generate(question, options, adapted=not base):
            parts.append(part)
            if not as_json:
                sys.stdout.write(part)
                sys.stdout.flush()
        if not as_json:
            sys.stdout.write("\n")
        answers.append({"prompt": prompt, "text": "".join(parts)})
    if as_json:
        out_json(answers)


def _chat(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _from_stdin() -> str:
    text = sys.stdin.read().strip()
    if not text:
        raise UsageError("There is no prompt. Give -p TEXT, or text on stdin.")
    return text
