"""``edgetune plan``: what would run, in how much memory and time, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.cli.config_file import config_option
from edgetune.cli.habits import HabitCommand
from edgetune.cli.options import (
    FilePath,
    common_options,
    data_option,
    device_option,
    knob_options,
    memory_option,
    model_option,
)
from edgetune.cli.output_file import OutputFile
from edgetune.cli.plan_files import complete, make_room
from edgetune.cli.plan_text import plan_text, served_text, verified_text
from edgetune.cli.reading import reading_bar
from edgetune.cli.show import out, out_json, say
from edgetune.device import read_device
from edgetune.errors import UsageError
from edgetune.planning import FILE_NAME, Plan, is_plan_file
from edgetune.settings.spec import MOST_PARTS, to_plain
from edgetune.workflows.measured import refuse_elsewhere
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.settings import Fixed
from edgetune.workflows.several import serving_of, with_room
from edgetune.world import Place

MOST_ADAPTERS = 1_000_000
"""That are counted beside each other."""


@click.command(
    "plan", cls=HabitCommand, short_help="Print what would run, its memory, its time, and why."
)
@model_option
@data_option
@device_option
@memory_option
@click.option(
    "--output",
    type=OutputFile("a plan file", is_plan_file),
    help=f"Keep the plan in a file; `edgetune train` takes {FILE_NAME} by itself.",
)
@click.option("--plan", "plan_file", type=FilePath(), hidden=True, help="A plan to go by.")
@config_option
@click.option(
    "--nproc",
    type=click.IntRange(1, MOST_PARTS),
    default=1,
    metavar="N",
    help="Plan for N processes that train together: on this machine, or on N of a PROFILE.",
)
@click.option(
    "--adapters",
    type=click.IntRange(1, MOST_ADAPTERS),
    metavar="N",
    help="Count N adapters of this method over the base at once, as `edgetune serve` holds them.",
)
@click.option("--measure", is_flag=True, help="Time this machine first, if that was not done yet.")
@click.option("--verify", is_flag=True, help="Run the step without its memory and compare.")
@knob_options
@common_options
def command(
    model: str | None,
    data: Path | None,
    device: str,
    memory: int | None,
    output: Path | None,
    plan_file: Path | None,
    nproc: int,
    adapters: int | None,
    measure: bool,
    verify: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Plan a run: what fits this machine (or a PROFILE of one), how long it takes, and why.

    No weights are needed. Nothing is written, unless --output names a file. --verify runs the step on tensors without data and counts live bytes, which takes a minute.
    """
    if model is None and plan_file is None:
        raise UsageError("Which model? Give --model REF; `edgetune models` lists what is known.")
    fixed = Fixed.of(flags)
    request = PlanRequest(
        model=model or "",
        data=data,
        device=device,
        memory=memory,
        choice=fixed.choice,
        training=fixed.training,
        named=fixed.names,
        measure=measure,
        place=_place(nproc, device) if nproc > 1 else None,
    )
    if plan_file is not None:
        request = complete(request, plan_file)
    if measure:
        refuse_elsewhere(request.device)
    with reading_bar() as report:
        planned = plan_for(request, report, say)
    plan = planned.plan
    serving = None if adapters is None else serving_of(plan, [plan.choice.method] * adapters)
    if serving is not None:
        with_room(plan, serving)
    if output is not None:
        _save(plan, output)
    checks = _verified(plan) if verify else None
    if as_json:
        more = {} if checks is None else {"verified": to_plain(checks)}
        more |= {} if serving is None else {"serving": serving.to_json()}
        out_json(plan.to_json() | more)
    else:
        out(plan_text(plan, here=planned.here))
        if serving is not None:
            out("\n" + served_text(plan, serving))
        if checks is not None:
            out("\n" + verified_text(checks))
    if output is None:
        say(f"To keep it for `edgetune train`: --output {FILE_NAME}")
    else:
        say(f"Written to {output}")


def _save(plan: Plan, output: Path) -> None:
    """Write the plan file; the plan of something else that is there keeps a name of its own."""
    try:
        if output.name == FILE_NAME:
            make_room(output, plan)
        plan.save(output)
    except OSError as error:
        raise UsageError(f"The plan file {output} cannot be written: {error.strerror}.") from None


def _place(nproc: int, device: str) -> Place:
    """Return the first of so many ranks; those on this machine share it."""
    local = nproc if read_device(device).here else 1
    return Place(rank=0, world=nproc, local_rank=0, local_world=local)


def _verified(plan: Plan) -> list[Any]:
    from edgetune.workflows.verifying import verify

    return verify(plan)
