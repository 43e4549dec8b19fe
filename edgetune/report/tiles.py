"""The top of a report: where the run stands, and its few figures that matter most."""

from __future__ import annotations

from datetime import datetime, timezone
from math import exp

from edgetune.escapes import shell_word
from edgetune.report.contents import Report, figure, value
from edgetune.report.markup import text
from edgetune.units import format_bytes, format_count, format_seconds

WORDS = {
    "planned": "not begun", "running": "running", "finished": "finished",
    "stopped": "stopped", "failed": "failed", "interrupted": "interrupted",
}  # fmt: skip


def status_line(report: Report) -> str:
    """Return where the run stands, and what to do if it did not come to its end."""
    status, of = report.status, "" if report.total is None else f" of {report.total:,}"
    line = f'<p class="status"><span class="pill {status.kind}">{WORDS[status.kind]}</span> '
    line += f"<span>Step {report.step:,}{of}</span>"
    if status.exit_code:
        line += f" <span>exit code {status.exit_code}</span>"
    if report.status.kind == "running" and (left := _seconds_left(report)) is not None:
        line += f" <span>about {format_seconds(left)} left</span>"
    line += f' <span class="muted">{_when(report)}</span></p>'
    if status.because:
        line += f'<p class="because">{text(status.because, 1000)}</p>'
    if status.resumable:
        command = f"edgetune train --resume --output {shell_word(str(report.path))}"
        line += f"<p>Resume it: <code>{text(command)}</code></p>"
    return line


def tiles(report: Report) -> str:
    """Return the few figures that matter most."""
    found = [_loss(report), _memory(report), _speed(report), _size(report)]
    inner = "".join(
        f'<div class="tile"><dt>{name}</dt><dd><strong>{figure_}</strong> <span>{note}</span></dd></div>'
        for name, figure_, note in filter(None, found)
    )
    return f'<dl class="tiles">{inner}</dl>' if inner else ""


def moment(seconds: float | None) -> str:
    """Return a time as text, such as ``2026-11-30 06:12:05 UTC``."""
    try:
        found = datetime.fromtimestamp(seconds or 0.0, tz=timezone.utc)
    except (OverflowError, OSError, ValueError):
        return "an unknown time"
    return f"{found:%Y-%m-%d %H:%M:%S} UTC"


def _when(report: Report) -> str:
    """Return when a run began and ended and how long it took, or as of when it is running."""
    if report.ended is None:
        begun = "" if report.begun is None else f"begun {moment(report.begun)}, "
        return f"{begun}as of {moment(report.made)}"
    if report.begun is None:
        return f"ended {moment(report.ended)}"
    times = len(report.notes("resumed"))
    resumed = f", resumed {times:,} time{'' if times == 1 else 's'} meanwhile" if times else ""
    took = format_seconds(max(0.0, report.ended - report.begun))
    return f"begun {moment(report.begun)}, ended {moment(report.ended)}: {took}{resumed}"


def _loss(report: Report) -> tuple[str, str, str] | None:
    base, best = report.base, report.best
    if best is not None and base is not None:
        note = f"from {base.loss:.4f} of the base, best at step {best.step:,}"
        return "Validation loss", f"{best.loss:.4f}", note
    if best is not None:
        return "Validation loss", f"{best.loss:.4f}", f"perplexity {exp(min(best.loss, 700)):.2f}"
    if len(report.steps):
        return "Training loss", f"{report.steps.loss[-1]:.4f}", "of the last step; nothing held out"
    return None


def _memory(report: Report) -> tuple[str, str, str] | None:
    planned = figure(report.plan, "memory", "peak_bytes")
    peak = figure(report.memory, "peak_bytes")
    if len(report.steps):
        peak = max(peak or 0.0, float(report.steps.peak.max()))
    if planned is None:
        return None
    if peak is None:
        return "Memory", format_bytes(planned), "planned, nothing measured yet"
    note = f"of {format_bytes(planned)} planned"
    return "Memory at the peak", format_bytes(peak), note + (": above" if peak > planned else "")


def _speed(report: Report) -> tuple[str, str, str] | None:
    if not len(report.steps):
        return None
    seconds = float(report.steps.seconds.sum())
    return (
        "Speed",
        f"{report.steps.tokens_per_second:,.0f} tokens/s",
        f"{format_seconds(seconds)} in {len(report.steps):,} steps",
    )


def _size(report: Report) -> tuple[str, str, str] | None:
    trained = figure(report.plan, "choice", "trainable_parameters")
    parameters = figure(report.plan, "model", "parameters")
    if trained is None:
        return None
    method = text(value(report.plan, "choice", "method") or "", 40)
    of = f", of {format_count(int(parameters))}" if parameters else ""
    return "Trained", format_count(int(trained)), f"parameters with {method}{of}"


def _seconds_left(report: Report) -> float | None:
    if report.total is None or not len(report.steps):
        return None
    recent = report.steps.seconds[-50:]
    return float(recent.mean()) * max(0, report.total - report.step)
