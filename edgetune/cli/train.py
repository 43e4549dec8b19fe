"""``edgetune train``: from a file of examples to an adapter."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from edgetune.cli.options import (
    Fixed,
    common_options,
    data_option,
    device_option,
    knob_options,
    memory_option,
    model_option,
)
from edgetune.cli.plan_text import plan_text
from edgetune.cli.progress import ProgressBar
from edgetune.cli.reading import reading_bar
from edgetune.cli.show import NORMAL, out, out_json, say, verbosity
from edgetune.errors import StoppedError, UsageError
from edgetune.model import resolve
from edgetune.planning import FILE_NAME, plan_from_json, read_plan_file
from edgetune.runs import RunFolder
from edgetune.workflows.planning import (
    PlanRequest,
    PreparedPlan,
    plan_for,
    planned_model,
    replanned,
)
from edgetune.workflows.training import Run, resume_run, start_run


@click.command("train", short_help="Train on a file of examples.")
@data_option
@model_option
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="A plan file.")
@click.option("--output", type=click.Path(path_type=Path), help="The run folder.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --output; --data if its rows moved, --memory for another limit.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and the receipt, train nothing.")
@click.option(
    "--pause", is_flag=True, help="Wait while the machine is on battery or short of memory."
)
@device_option
@memory_option
@knob_options
@common_options
def command(
    data: Path | None,
    model: str | None,
    plan_file: Path | None,
    output: Path | None,
    resume: bool,
    dry_run: bool,
    pause: bool,
    device: str,
    memory: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train on a file of examples and write a run folder with the adapter.

    Without --plan and --model, the edgetune-plan.yaml of this folder is taken. Flags change
    single settings of a plan. Ctrl-C once stops after the step and saves, twice at once.
    """
    fixed = Fixed.of(flags)
    if resume:
        others = {"model": model, "plan": plan_file, "dry-run": dry_run}
        _refuse_with_resume(fixed, device=device != "auto", **others)
        _train(resume_run(_resumed(output), data, memory), as_json, pause=pause)
        return
    if output is not None:
        RunFolder.check(output)
    request = PlanRequest(
        model=model or "",
        data=data,
        device=device,
        memory=memory,
        choice=fixed.choice,
        training=fixed.training,
    )
    with reading_bar() as report:
        planned = plan_for(_complete(request, plan_file), report)
    if not dry_run:
        _require_here(planned, device)
        _show(planned, say)
        _train(start_run(planned, output or _fresh_name(planned)), as_json, pause=pause)
    elif as_json:
        out_json(planned.plan.to_json())
    else:
        _show(planned, out)


def _complete(request: PlanRequest, plan_file: Path | None) -> PlanRequest:
    """Return the request with what a plan file says, if one is to be taken."""
    if request.model and plan_file:
        raise UsageError("--plan already names the model. Give --plan or --model, not both.")
    if not request.model:
        path = plan_file or Path(FILE_NAME)
        if plan_file is None and not path.is_file():
            raise UsageError(
                f"Which model? Give --model REF, or --plan FILE (there is no {FILE_NAME} here)."
            )
        plain = read_plan_file(path)
        plan = plan_from_json(plain, resolve(planned_model(plain, path)).shape)
        request = replanned(plan, request)
    if request.data is None:
        raise UsageError("Train on what? Give --data FILE.")
    return request


def _require_here(planned: PreparedPlan, device: str) -> None:
    if not planned.here:
        raise UsageError(
            f"--device {device} is another machine's profile, to plan for. "
            "Train with a device that is here: auto, cpu, cuda or mlx."
        )


def _refuse_with_resume(fixed: Fixed, **others: object) -> None:
    given = [f"--{name}" for name, value in others.items() if value]
    given += [
        f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        for name, value in {**fixed.choice, **fixed.training}.items()
    ]
    if given:
        raise UsageError(
            f"--resume goes on exactly as the run began, so that {', '.join(given)} cannot be "
            "given with it. To change something, train into another --output."
        )


def _resumed(output: Path | None) -> Path:
    if output is None:
        raise UsageError("Which run? Give its folder: --resume --output DIR.")
    return output


def _fresh_name(planned: PreparedPlan) -> Path:
    assert planned.plan.data is not None
    stem = f"{Path(planned.plan.data.path).name.split('.')[0]}-{Path(planned.plan.model.ref).name}"
    path, number = Path("runs") / stem, 1
    while path.exists():
        number += 1
        path = path.with_name(f"{stem}-{number}")
    return path


def _show(planned: PreparedPlan, show: Callable[[str], None]) -> None:
    show(plan_text(planned.plan))
    if planned.dataset is not None:
        show("\n" + "\n".join(planned.dataset.receipt.lines()) + "\n")


def _train(run: Run, as_json: bool, *, pause: bool) -> None:
    """Train to the end and print where the adapter is."""
    folder = run.folder
    say(f"Run folder {folder.path}")
    for notice in run.notices:
        say(notice)
    told = len(run.notices)
    if run.start.step:
        say(f"Going on after step {run.start.step} of {run.schedule.steps}")
    with closing(run), ProgressBar(run) as progress, _interrupts() as interrupts:
        try:
            for event in run.events(lambda: bool(interrupts), pause=pause):
                progress.show(event)
        except StoppedError as error:
            raise StoppedError(f"{error} Go on with: {folder.resume_command}") from None
        except KeyboardInterrupt:
            say(f"Go on from the newest checkpoint with: {folder.resume_command}")
            raise
    for notice in run.notices[told:]:
        say(notice)
    if as_json:
        places = {"run": str(folder.path), "adapter": str(folder.adapter)}
        out_json({**places, **progress.summary()})
    else:
        out(f"The adapter is in {folder.adapter}")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or termination; let a second one through."""
    seen: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    audible = verbosity() >= NORMAL

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        for kind in kinds:
            signal.signal(kind, signal.default_int_handler)
        if audible:  # not through a buffer, which may be in use right now
            os.write(sys.stderr.fileno(), b"\nStopping after this step; once more stops at once.\n")

    before = [signal.signal(kind, note) for kind in kinds]
    try:
        yield seen
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
