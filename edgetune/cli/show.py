"""How results look on a terminal: plain text of at most 80 columns, colour only where allowed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from edgetune.memory import Parts
from edgetune.plan import Plan
from edgetune.spec import values
from edgetune.units import format_bytes, format_count, format_seconds

BAR = 40
"""Columns of the memory bar."""

QUIET, NORMAL, VERBOSE = 0, 1, 2
_LEVEL = "edgetune.verbosity"


def out(text: str = "") -> None:
    """Print a line of a result."""
    click.echo(text)


def say(text: str, *, level: int = NORMAL) -> None:
    """Print a line about the progress, if the user wants to hear as much."""
    if verbosity() >= level:
        click.echo(text, err=True)


def verbosity() -> int:
    """Return how much the user of this command wants to hear."""
    level: int = click.get_current_context().meta.get(_LEVEL, NORMAL)
    return level


def set_verbosity(context: click.Context, level: int) -> None:
    """Remember how much the user of this command wants to hear."""
    context.meta[_LEVEL] = level


def out_json(value: Any) -> None:
    """Print a result as JSON."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    """Return rows in columns, the first flush left and the others flush right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def plan_text(plan: Plan) -> str:
    """Return the plan as people read it."""
    sections = (_head(plan), _bar(plan), _phases(plan), _time(plan), _reasons(plan))
    return "\n".join(line for section in sections for line in (*section, ""))[:-1]


def _head(plan: Plan) -> list[str]:
    choice, device, model = plan.choice, plan.device, plan.model
    settings = values(choice.method)
    rank = f" rank {settings['rank']}" if "rank" in settings else ""
    trained = format_count(choice.method.parameters(plan.shape))
    rows = choice.micro_batch * choice.accumulation
    return [
        f"Machine   {device.name} ({device.kind}), {format_bytes(device.budget_bytes)} to use",
        f"Model     {model.ref}, {format_count(model.parameters)} parameters",
        f"Method    {choice.method.kind}{rank}, {trained} trained parameters",
        f"Base      {_base(plan)}",
        f"Step      {rows} rows of {choice.context} tokens, {choice.micro_batch} at once",
        f"Optimizer {choice.optimizer}, computing in {choice.compute_dtype}",
        f"Training  {_training(plan)}",
    ]


def _base(plan: Plan) -> str:
    choice, layers = plan.choice, plan.choice.checkpointing.layers
    stored = plan.shape.dtype if choice.quantization == "none" else choice.quantization
    kept = f"{layers} of {plan.shape.layers} blocks checkpointed" if layers else "no checkpointing"
    return f"{stored}, {choice.placement}, {kept}"


def _training(plan: Plan) -> str:
    training = plan.training
    span = f"{training.steps} steps" if training.steps else f"{training.epochs:g} epochs"
    return f"{span}, learning rate {training.learning_rate:g}, seed {training.seed}"


def _bar(plan: Plan) -> list[str]:
    """Return a line a part: its bytes and its share of the budget as a bar."""
    budget = plan.device.budget_bytes
    parts = [(name, size) for name, size in values(plan.memory.parts).items() if size]
    scale = max(budget, plan.memory.parts.total)
    lines, used = [], 0
    for name, size in sorted(parts, key=lambda part: -part[1]):
        start, stop = (round(BAR * x / scale) for x in (used, used + size))
        bar = " " * start + "#" * max(1, stop - start)
        lines.append(f"{name:<12}{format_bytes(size):>9}  |{bar[:BAR]:<{BAR}}|")
        used += size
    total = Parts(**values(plan.memory.parts)).total
    lines.append(f"{'in training':<12}{format_bytes(total):>9}  of {format_bytes(budget)}")
    return ["Memory", *lines]


def _phases(plan: Plan) -> list[str]:
    phases = values(plan.memory.phases).items()
    return ["Peak by phase   " + ", ".join(f"{name} {format_bytes(b)}" for name, b in phases)]


def _time(plan: Plan) -> list[str]:
    time = plan.time
    if not time.seconds_per_step:
        return ["Time   not known for this machine"]
    speed = f"{time.tokens_per_second:,.0f} tokens/s"
    basis = "estimated from the machine's rates" if time.basis == "profile" else "measured"
    return [f"Time   {format_seconds(time.seconds_per_step)} a step, {speed} ({basis})"]


def _reasons(plan: Plan) -> list[str]:
    lines = ["Why", *(f"- {reason}" for reason in plan.reasons)]
    if plan.rejected:
        lines += ["Not taken", *(f"- {_neighbour(x.choice)}: {x.because}" for x in plan.rejected)]
    return lines


def _neighbour(choice: dict[str, Any]) -> str:
    layers = choice["checkpointing"]["layers"]
    return f"{choice['quantization']} base, {layers} blocks checkpointed"
