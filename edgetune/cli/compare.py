"""``edgetune compare``: several methods on the same rows, or several runs, side by side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from edgetune.cli.comparison_text import tables, terminal
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
from edgetune.cli.output_file import page_option
from edgetune.cli.process import this_process
from edgetune.cli.show import QUIET, VERBOSE, out, out_json, say, verbosity
from edgetune.errors import StoppedError, UsageError
from edgetune.files import unwritable, write_text
from edgetune.report import Report
from edgetune.report.comparison import comparison_page
from edgetune.settings.spec import to_plain
from edgetune.workflows.contest import Called, Contest
from edgetune.workflows.run_figures import RunFigures, about_rows, figures_of, unlike
from edgetune.workflows.run_scores import scored
from edgetune.workflows.scoring import Scores
from edgetune.workflows.settings import Fixed

_LOOK_SECONDS = 0.2


@click.command("compare", short_help="Compare methods or runs side by side.")
@click.argument("runs", type=Ref(), nargs=-1, metavar="[RUN]...")
@click.option(
    "--methods",
    type=Names(),
    metavar="NAME,…",
    help="Train these methods on --data, each with the same rows, steps and seed.",
)
@data_option
@model_option
@click.option(
    "--output", type=FilePath(), metavar="DIR", help="Where the runs of --methods are kept."
)
@click.option(
    "--held-out",
    type=FilePath(),
    metavar="FILE",
    help="Score all of them on these rows as well, as `edgetune eval` does.",
)
@click.option("--exact-match", is_flag=True, help="Let them answer the rows of --held-out, too.")
@page_option("--html", "Also write a page with charts.")
@device_option
@memory_option
@knob_options
@common_options
def command(
    runs: tuple[str, ...],
    methods: tuple[str, ...] | None,
    data: Path | None,
    model: str | None,
    output: Path | None,
    held_out: Path | None,
    exact_match: bool,
    html: Path | None,
    device: str,
    memory: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Print quality, memory, time, size and forgetting of several runs.

    Give existing RUNs, or have runs trained first: one for each of --methods, one after the other,
    each in a process of its own. What was trained is not trained again: after an interruption, run
    the same command to continue.
    """
    if exact_match and held_out is None:
        raise UsageError("--exact-match answers the rows of --held-out. Give them, too.")
    fixed = Fixed.of(flags)
    if methods is None:
        given = {"data": data, "model": model, "output": output, "memory": memory}
        _refuse_without_methods(runs, fixed, device=device != "auto", **given)
        found = Comparison.of({name: Path(name) for name in runs})
    else:
        contest = _contest(runs, methods, data, model, output, fixed, device, memory)
        found = _trained(contest)
    if held_out is not None:
        found = found.scored(held_out, exact_match=exact_match)
    if html is not None:
        _write(found, html)
    if as_json:
        out_json(found.to_json())
    else:
        out(terminal(found.figures, found.bases, found.notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs and what they came to; ``bases`` are the scores of base models by reference."""

    paths: dict[str, Path]
    reports: dict[str, Report]
    figures: list[RunFigures]
    notes: list[str]
    bases: dict[str, Scores] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: dict[str, Path], failed: dict[str, str] | None = None) -> Comparison:
        """Return what runs came to, and those that ``failed`` before they were runs.

        Raises:
            UsageError: if one is no run.
        """
        failed = failed or {}
        reports = {name: Report.of(path) for name, path in paths.items() if name not in failed}
        figures = [
            figures_of(name, reports[name])
            if name in reports
            else RunFigures(name=name, method=name, steps=0, problem=failed[name])
            for name in paths
        ]
        found = list(reports.values())
        notes = [*unlike(found), *about_rows(found), *_problems(figures)]
        return cls(paths=paths, reports=reports, figures=figures, notes=notes)

    def scored(self, data: Path, *, exact_match: bool) -> Comparison:
        """Return the same with scores on rows of their own."""
        bases, figures, said = scored(self.figures, self.paths, data, exact_match=exact_match)
        return replace(self, bases=bases, figures=figures, notes=[*self.notes, *said])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        runs = [{**to_plain(one), "forgets": one.forgets} for one in self.figures]
        return {"runs": runs, "bases": to_plain(self.bases), "notes": self.notes}


def _problems(figures: Sequence[RunFigures]) -> list[str]:
    return [f"{one.name}: {one.problem}" for one in figures if one.problem]


def _contest(
    runs: Sequence[str],
    methods: tuple[str, ...],
    data: Path | None,
    model: str | None,
    output: Path | None,
    fixed: Fixed,
    device: str,
    memory: int | None,
) -> Contest:
    if runs:
        raise UsageError("Give existing runs, or --methods to train; not both.")
    if data is None or model is None:
        raise UsageError("--methods trains on rows over a model. Give --data FILE and --model REF.")
    settings = {**fixed.choice, **fixed.training}
    if "method" in settings:
        raise UsageError("--methods already says which. Leave out --method.")
    return Contest(
        folder=output or Path("runs") / f"compare-{data.name.split('.')[0]}",
        model=model,
        data=data,
        methods=methods,
        settings=settings,
        device=device,
        memory=memory,
    )


def _trained(contest: Contest) -> Comparison:
    """Return what the methods of a contest came to, after training those that are left.

    Raises:
        StoppedError: if one was stopped.
        UsageError: if none could be trained.
    """
    try:
        contest.begin()
    except OSError as error:
        raise unwritable("The runs", contest.folder, error, "give another --output") from error
    failed = {}
    for method, message in contest.train(_call, say):
        say(f"{method}: {message}")
        failed[method] = message
    if len(failed) == len(contest.methods):
        raise UsageError("No method could be trained: " + next(iter(failed.values())))
    return Comparison.of({name: contest.run_of(name) for name in contest.methods}, failed)


def _call(arguments: Sequence[str]) -> Called:
    """Run a command in a process of its own; what asks this one to end is passed on to it.

    Ctrl-C reaches both: the child saves and says so.
    """
    level = {QUIET: ["--quiet"], VERBOSE: ["--verbose"]}.get(verbosity(), [])
    words = [sys.executable, "-m", "edgetune", *arguments, "--json", *level]
    interrupts = this_process().interrupts
    with (
        interrupts.patiently(lambda: None) as stop,
        subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as child,
    ):
        try:
            printed = _printed(child, lambda: interrupts.ends)
        except BaseException:
            child.terminate()
            raise
        if stop() and child.returncode == 0:
            raise StoppedError(
                "Stopped between two methods. Run the same command again to continue."
            )
        return Called(code=child.returncode, printed=printed)


def _printed(child: subprocess.Popen[str], ends: Callable[[], bool]) -> str:
    """Return what a child printed when it has ended."""
    told = False
    while True:
        try:
            printed, _ = child.communicate(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if ends() and not told:
                child.terminate()
                told = True
            continue
        return printed


def _refuse_without_methods(runs: Sequence[str], fixed: Fixed, **others: object) -> None:
    given = [*(name for name, value in others.items() if value), *fixed.choice, *fixed.training]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{flags}: settings of training. Say what to train with --methods.")
    if not runs:
        raise UsageError(
            "Compare what? Give runs, or --methods lora,bitfit with --data and --model to train."
        )
    if len(set(runs)) < len(runs):
        raise UsageError("A run is given twice. Give each once.")


def _write(found: Comparison, path: Path) -> None:
    names = ", ".join(one.name for one in found.figures)
    page = comparison_page(
        f"Comparison of {names}",
        [(one.caption, one.header, one.rows) for one in tables(found.figures, found.bases)],
        list(found.reports.items()),
        found.notes,
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise unwritable("The page", path, error, "choose another place with --html") from error
    say(f"Written to {path}")
