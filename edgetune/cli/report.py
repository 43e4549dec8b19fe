"""``edgetune report``: the page of a run, made anew from what its folder holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgetune.cli.options import FilePath, common_options
from edgetune.cli.output_file import page_option
from edgetune.cli.show import complain, out, out_json
from edgetune.files import unwritable
from edgetune.report import Report, write_report
from edgetune.report.writing import NAME
from edgetune.units import format_bytes


@click.command("report", short_help="Write the report of a run as one HTML page.")
@click.argument("run", type=FilePath(), metavar="RUN")
@page_option("--output", "Where to write it. [default: in the run]")
@common_options
def command(run: Path, output: Path | None, as_json: bool) -> None:
    """Write report.html for a run's folder, in whatever state the run is.

    The page needs nothing else: it can be mailed, printed or opened years later. A run writes it
    by itself; this writes it anew, also for runs of an older edgetune.
    """
    report = Report.of(run)
    path = output or run / NAME
    for problem in report.problems:
        complain(f"Warning: {problem}")
    try:
        write_report(report, path)
    except OSError as error:
        raise unwritable("The report", path, error, "choose another place with --output") from error
    if as_json:
        out_json(_figures(report, path))
        return
    out(f"Written {format_bytes(path.stat().st_size)} to {path}")


def _figures(report: Report, path: Path) -> dict[str, object]:
    """Return what the page says, in few figures."""
    base, best = report.base, report.best
    return {
        "report": str(path),
        "run": str(report.path),
        "status": asdict(report.status),
        "begun": report.begun,
        "ended": report.ended,
        "step": report.step,
        "steps": report.total,
        "base_validation_loss": base and base.loss,
        "validation_loss": best and best.loss,
        "peak_bytes": report.memory.get("peak_bytes"),
        "planned_bytes": report.memory.get("planned_bytes"),
        "verdict": dict(report.verdict) or None,
        "problems": list(report.problems),
    }
