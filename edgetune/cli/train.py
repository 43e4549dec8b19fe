"""``edgetune train``: from a file of examples to an adapter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgetune.cli.again import Again, report, watch
from edgetune.cli.config_file import config_option
from edgetune.cli.habits import HabitCommand
from edgetune.cli.live import Stages
from edgetune.cli.options import (
    FilePath,
    Names,
    Ref,
    common_options,
    data_option,
    device_option,
    knob_options,
    memory_option,
    model_option,
)
from edgetune.cli.plan_files import complete
from edgetune.cli.plan_text import plan_line, plan_text
from edgetune.cli.process import this_process
from edgetune.cli.progress import ProgressBar
from edgetune.cli.ranks import Ranks, rank_options
from edgetune.cli.reading import ReadingBar
from edgetune.cli.show import NORMAL, VERBOSE, out, out_json, say, verbosity
from edgetune.cli.sinks import check_sinks, sinks
from edgetune.errors import StoppedError, UsageError
from edgetune.events import Event
from edgetune.report.writing import NAME as REPORT
from edgetune.runs import RunFolder, RunOptions
from edgetune.workflows.after import After
from edgetune.workflows.continuing import Beginning, read_beginning
from edgetune.workflows.method_search import chosen, keep
from edgetune.workflows.notifying import NO_NOTIFIER, notified, notifier
from edgetune.workflows.planning import (
    PlanRequest,
    PreparedPlan,
    plan_for,
)
from edgetune.workflows.resuming import resume_run
from edgetune.workflows.settings import Fixed
from edgetune.workflows.training import Run, start_run
from edgetune.world import ALONE, Place, World


@click.command("train", cls=HabitCommand, short_help="Train on a file of examples.")
@data_option
@model_option
@click.option("--plan", "plan_file", type=FilePath(), help="A plan file.")
@config_option
@click.option("--output", type=FilePath(), help="The run folder.")
@click.option(
    "--resume",
    is_flag=True,
    help="Resume the run in --output as it began; --data if its rows moved, --memory for another limit.",
)
@click.option(
    "--from",
    "source",
    type=Ref(),
    metavar="ADAPTER",
    help="Continue from an adapter: a run's folder, or one that PEFT or mlx-lm saved.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and the receipt, train nothing.")
@click.option("--brief", is_flag=True, help="Show the plan in one line, unless -v is given.")
@click.option("--pause/--no-pause", help="Wait while the machine is on battery or short of memory.")
@click.option(
    "--log",
    type=Names(),
    default=(),
    metavar="NAMES",
    help="Also log to tensorboard, trackio or wandb (offline unless WANDB_MODE says so).",
)
@click.option("--notify/--no-notify", help="Show a desktop notification when the run ends.")
@click.option(
    "--strict/--no-strict",
    help="Stop instead of continuing with fewer rows at once or a lower learning rate.",
)
@click.option(
    "--no-verdict/--verdict", help="At the end, do not measure what was learned and forgotten."
)
@click.option(
    "--samples",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    metavar="N",
    help="Held-out rows that base and tuned model answer at the end.",
)
@rank_options
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
    source: str | None,
    dry_run: bool,
    brief: bool,
    pause: bool,
    log: tuple[str, ...],
    notify: bool,
    strict: bool,
    no_verdict: bool,
    samples: int,
    nproc: int,
    rank_timeout: int,
    device: str,
    memory: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train on a file of examples and write a run folder with the adapter.

    Without --plan and --model, the edgetune-plan.yaml of this folder is used, with its rows, if it
    is for this machine. Flags override individual settings of a plan. Ctrl-C stops after the current step
    and saves; a second Ctrl-C stops at once.
    """
    fixed = Fixed.of(flags)
    ranks = Ranks.here(device, nproc, rank_timeout, pause=pause, resumed=output if resume else None)
    if ranks.follows:
        with this_process().interrupts.patiently(lambda: None) as stop:
            code = 0 if dry_run else ranks.follow(stop, model=model, data=data, memory=memory)
        click.get_current_context().exit(code)
    world = ALONE if dry_run else ranks.met()
    if (worker := this_process().worker) is not None:
        worker.met()
    options = RunOptions(
        verdict=not no_verdict, samples=samples, strict=strict, pause=pause, notify=notify,
        log=() if log == ("none",) else log,
    )  # fmt: skip
    if resume and output is not None:
        options = _as_it_began(output, options, alone=ranks.place is None)
    check_sinks(options.log)
    again = Again(as_json=as_json, options=options, nproc=nproc, rank_timeout=rank_timeout)
    if options.notify and notifier() is None:
        say(NO_NOTIFIER)
    if resume:
        others = {"model": model, "plan": plan_file, "from": source, "dry-run": dry_run}
        _refuse_with_resume(fixed, device=device != "auto", **others)
        _resume(_resumed(output), replace(again, data=data, memory=memory), world, ranks.place)
        return
    if output is not None:
        RunFolder.check(output)
    request = PlanRequest(
        model=model or "",
        data=data,
        device=ranks.device,
        memory=memory,
        choice=fixed.choice,
        training=fixed.training,
        named=fixed.names,
        measure=True,
        run=not dry_run,
        after=_after(options),
        place=ranks.place,
    )
    request, beginning = _begun(request, plan_file, source)
    with Stages() as stages:
        stages.begin("Reading rows")
        planned = plan_for(request, ReadingBar(stages.detail).show, stages.begin)
        stages.end()
        if not dry_run:
            _require_here(planned, device)
            if brief and verbosity() < VERBOSE:
                say(plan_line(planned.plan))
            else:
                _show(planned, say)
            folder = output or _fresh_name(planned)
            planned, races = _chosen(planned, folder, again, stages)
            stages.begin("Loading the model")
            run = start_run(planned, folder, beginning, world, options)
            keep(races, run.folder)
            _train(run, again, stages)
        elif as_json:
            out_json(planned.plan.to_json())
        elif brief and verbosity() < VERBOSE:
            out(plan_line(planned.plan))
        else:
            _show(planned, out)


def _chosen(
    planned: PreparedPlan, folder: Path, again: Again, stages: Stages
) -> tuple[PreparedPlan, dict[str, Any] | None]:
    """Return the plan of the method that wins its races, where methods are raced."""
    if not planned.candidates:
        return planned, None
    stages.begin("Racing methods")
    with this_process().interrupts.patiently(lambda: None) as stop:
        options = again.options
        return chosen(planned, folder, say, stop, pause=options.pause, strict=options.strict)


def _resume(folder: Path, again: Again, world: World, place: Place | None) -> None:
    """Go on with a run."""
    worker = this_process().worker
    with Stages() as stages:
        stages.begin("Reading rows, loading the model")
        recovery = worker.recovery if worker else None
        run = resume_run(folder, again.data, again.memory, recovery, world, place, again.options)
        _train(run, again, stages)


def _as_it_began(folder: Path, options: RunOptions, *, alone: bool) -> RunOptions:
    """Return the options that a run began with, but for those that are given anew.

    One of several ranks never pauses.
    """
    source = click.get_current_context().get_parameter_source
    names = {"no_verdict": "verdict"} | {each.name: each.name for each in fields(options)}
    given = {
        ours: getattr(options, ours)
        for name, ours in names.items()
        if source(name) not in {None, ParameterSource.DEFAULT}
    }
    kept = replace(RunOptions.of(folder), **given)
    return kept if alone else replace(kept, pause=False)


def _after(options: RunOptions) -> After:
    return After(verdict=options.verdict, samples=options.samples)


def _begun(
    request: PlanRequest, plan_file: Path | None, source: str | None
) -> tuple[PlanRequest, Beginning | None]:
    """Return the complete request, and the adapter that the training goes on from, if any."""
    if source is None:
        return _with_rows(complete(request, plan_file)), None
    beginning = None
    if not request.model and plan_file is None:
        beginning = read_beginning(source, None)
        request = replace(request, model=beginning.ref)
    request = _with_rows(complete(request, plan_file))
    beginning = beginning or read_beginning(source, request.model)
    for notice in beginning.notices:
        say(notice)
    return beginning.request(request), beginning


def _with_rows(request: PlanRequest) -> PlanRequest:
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
            f"--resume continues the run exactly as it began: {', '.join(given)} cannot be "
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
    show(plan_text(planned.plan, here=planned.here))
    if planned.dataset is not None:
        show("\n" + "\n".join(planned.dataset.receipt.lines()) + "\n")


def _train(run: Run, again: Again, stages: Stages) -> None:
    """Train to the end and print where the adapter is."""
    folder, process, options = run.folder, this_process(), again.options
    worker, tell = process.worker, _said_once if verbosity() >= NORMAL else lambda: None
    if worker is not None:
        watch(run, worker, again)
    stages.end()
    say(f"Run folder {folder.path}")
    for notice in run.notices:
        say(notice)
    told = len(run.notices)
    if run.start.step:
        say(f"Resuming after step {run.start.step} of {run.schedule.steps}")
    progress = ProgressBar(run, stages, judged=options.verdict or options.samples > 0)
    with (
        notified(folder.path.name, wanted=options.notify),
        closing(run),
        sinks(options.log, run) as logged,
        process.interrupts.patiently(tell) as stop,
    ):
        try:
            for event in _events(run, options, stop):
                progress.show(event)
                logged(event)
                if worker is not None:
                    report(worker, event)
        except StoppedError as error:
            raise StoppedError(f"{error} Continue with: {folder.resume_command}") from None
        except KeyboardInterrupt:
            say(f"Continue from the newest checkpoint with: {folder.resume_command}")
            raise
        finally:
            stages.end()
    cautions = [] if progress.verdict() else progress.cautions()
    for notice in (*run.notices[told:], *cautions):
        say(notice)
    page = folder.path / REPORT
    if again.as_json:
        places = {"run": str(folder.path), "adapter": str(folder.adapter), "report": str(page)}
        out_json({**places, **progress.summary()})
    else:
        kept = folder.kept()
        for line in progress.verdict():
            out(line)
        if page.is_file():
            out(f"The report is {page}")
        out(f"The adapter is in {folder.adapter}" + (f" ({kept})" if kept else ""))


def _events(run: Run, options: RunOptions, stop: Callable[[], bool]) -> Iterator[Event]:
    return run.events(stop, pause=options.pause, strict=options.strict, after=_after(options))


def _said_once() -> None:
    """Answer an interrupt from a signal handler: not through a buffer, which may be in use."""
    with suppress(OSError):
        os.write(
            sys.stderr.fileno(),
            b"\nStopping after this step; press Ctrl-C again to stop at once.\n",
        )
