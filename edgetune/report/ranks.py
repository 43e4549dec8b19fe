"""The ranks of a run that had several: what each is, its share of a step, and what it took."""

from __future__ import annotations

from edgetune.report.contents import Plain, Report, figure, items, value
from edgetune.report.markup import DASH, table, text
from edgetune.units import format_bytes, format_seconds

SHOWN = 64


def ranks(report: Report) -> str:
    """Return a table with a line for each rank, nothing for a run of one process."""
    found = [rank for rank in items(report.ranks, "ranks")[:SHOWN] if isinstance(rank, dict)]
    step = figure(report.ranks, "step")
    if not found or step is None:
        return ""
    header = ("Rank", "Device", "Weights", "Share", "Own time of a step", "Peak", "Allowed")
    caption = f"Up to step {step:,.0f}; the time of a step is without waiting for the others"
    return table((_line(number, rank) for number, rank in enumerate(found)), header, caption)


def _line(number: int, rank: Plain) -> tuple[str, ...]:
    share, seconds = figure(rank, "share"), figure(rank, "seconds")
    return (
        str(number),
        text(value(rank, "device") or DASH, 100),
        text(value(rank, "placement") or DASH, 40),
        DASH if share is None else f"{share:.0%}",
        DASH if seconds is None else format_seconds(seconds),
        _bytes(rank, "peak_bytes"),
        _bytes(rank, "budget_bytes"),
    )


def _bytes(rank: Plain, name: str) -> str:
    number = figure(rank, name)
    return DASH if number is None else format_bytes(int(number))
