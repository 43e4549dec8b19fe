"""``edgetune generate``: text from runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click

from edgetune.backend import GenerateOptions
from edgetune.cli.options import FilePath, common_options, some_knob_options
from edgetune.cli.show import VERBOSE, out, out_json, say
from edgetune.errors import UsageError
from edgetune.workflows.inference import OpenedRun, answers, open_runs

Question = str | list[dict[str, str]]


@click.command("generate", short_help="Let runs answer a prompt.")
@click.argument("runs", type=FilePath(), nargs=-1, required=True, metavar="RUN...")
@click.option("-p", "--prompt", "prompts", multiple=True, help="A prompt; may be repeated.")
@click.option("--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as text, without chat template.")
@click.option("--base", is_flag=True, help="Answer by the base model, without the adapter.")
@some_knob_options(spec=GenerateOptions)
@common_options
def command(
    runs: tuple[Path, ...],
    prompts: tuple[str, ...],
    system: str | None,
    raw: bool,
    base: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Print the answer of each RUN to each prompt; without -p, to the text on stdin.

    Several runs must be over the same base model, which is loaded once; their answers are
    computed together.
    """
    if raw and system is not None:
        raise UsageError("--raw uses no chat template, so that --system would be lost.")
    if base and len(runs) > 1:
        raise UsageError("--base leaves the adapters out, so that one RUN is enough.")
    options = GenerateOptions(**{name: value for name, value in flags.items() if value is not None})
    opened = open_runs(runs)
    for run in opened:
        say(f"Opened {run.model.folder} with {run.folder.adapter}", level=VERBOSE)
    if base:
        opened = [opened[0].base()]
    options = replace(options, end_tokens=opened[0].tokenizer.end_tokens)
    texts = prompts or (_from_stdin(),)
    questions = [prompt if raw else _chat(prompt, system) for prompt in texts]
    if len(opened) == len(questions) == 1 and not as_json:
        _stream(opened[0], questions[0], options)
        return
    found = []
    for (prompt, path), text in zip(
        product(texts, runs), answers(opened, questions, options), strict=True
    ):
        if not as_json:
            out(text if len(runs) == 1 else f"{path}: {text}")
        found.append({"run": str(path), "prompt": prompt, "text": text})
    if as_json:
        out_json(found)


def _stream(run: OpenedRun, question: Question, options: GenerateOptions) -> None:
    """Print an answer as it comes."""
    for part in run.generate(question, options):
        sys.stdout.write(part)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _chat(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _from_stdin() -> str:
    text = sys.stdin.read().strip()
    if not text:
        raise UsageError("There is no prompt. Give -p TEXT, or text on stdin.")
    return text
