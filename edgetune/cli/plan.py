"""``edgetune plan``: what would run, in how much memory and time, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.agent.planning import Wish, plan_for
from edgetune.cli.options import (
    Fixed,
    common_options,
    data_option,
    device_option,
    knob_options,
    memory_option,
    model_option,
)
from edgetune.cli.show import out, out_json, plan_text, say
from edgetune.errors import UsageError
from edgetune.plan import FILE_NAME


@click.command("plan", short_help="Print what would run, its memory, its time, and why.")
@model_option
@data_option
@device_option
@memory_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path(FILE_NAME),
    help=f"The plan file. [default: {FILE_NAME}]",
)
@knob_options
@common_options
def command(
    model: str | None,
    data: Path | None,
    device: str,
    memory: int | None,
    output: Path,
    as_json: bool,
    **flags: Any,
) -> None:
    """Plan a run: what fits this machine (or a PROFILE of one), how long it takes, and why.

    No weights are needed. The plan is written to a file that `edgetune train` takes.
    """
    if model is None:
        raise UsageError("Which model? Give --model REF; `edgetune models` lists what is known.")
    fixed = Fixed.of(flags)
    wish = Wish(
        model=model,
        data=data,
        device=device,
        memory=memory,
        choice=fixed.choice,
        training=fixed.training,
    )
    plan = plan_for(wish).plan
    try:
        plan.save(output)
    except OSError as error:
        raise UsageError(f"The plan file {output} cannot be written: {error.strerror}.") from None
    if as_json:
        out_json(plan.to_json())
    else:
        out(plan_text(plan))
    say(f"Written to {output}")
