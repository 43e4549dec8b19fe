"""Runs side by side: their losses in one chart, their figures and the settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from markupsafe import Markup
from starlette.responses import Response

from edgetune.errors import UsageError
from edgetune.page.asked import Asked
from edgetune.page.listing import signature
from edgetune.page.page import Page, Part, live, shown_with
from edgetune.report import Chart, Line, Report, line_chart
from edgetune.report.markup import DASH
from edgetune.report.series import smoothed
from edgetune.report.settings import choice_used, training_used
from edgetune.units import format_bytes, format_rise, format_seconds
from edgetune.workflows.run_figures import adapter_bytes, forgets

FEWEST, MOST = 2, 6
PARTS: Final = ("model", "data", "choice", "training", "device")
"""Parts of a plan whose settings are held against each other."""
_FACTS: Final = ("free_bytes", "budget_bytes", "total_bytes", "trainable_parameters", "uuid")
"""Of them, what nobody set."""


def compare(page: Page, asked: Asked) -> Response:
    """Show runs side by side."""
    return shown_with(_part(page, asked), "compare.html")


def compare_live(page: Page, asked: Asked) -> Response:
    """Show them anew if one changed."""
    return live(asked, _part(page, asked))


def _part(page: Page, asked: Asked) -> Part:
    names = list(dict.fromkeys(asked.given.get("run", [])))
    if not FEWEST <= len(names) <= MOST:
        raise UsageError(
            f"A comparison takes {FEWEST} to {MOST} runs; found {len(names)}. Tick them in the list."
        )
    runs = [page.listing.run(name) for name in names]

    def values() -> Mapping[str, Any]:
        reports = [page.readers.report(run) for run in runs]
        labels = [run.name for run in runs]
        return {
            "names": labels,
            "charts": Markup(_charts(labels, reports)),
            "figures": list(_figures(reports)),
            "settings": list(_settings(reports)),
        }

    return Part([(run, signature(run.path)) for run in runs], "_compare.html", values)


def _charts(labels: Sequence[str], reports: Sequence[Report]) -> str:
    colored = [
        (label, report, f"c{i}")
        for i, (label, report) in enumerate(zip(labels, reports, strict=True), 1)
    ]
    training = tuple(
        Line(label, report.steps.step, smoothed(report.steps.loss), color=color)
        for label, report, color in colored
    )
    validation = tuple(
        Line(label, *_evaluations(report), color=color, shape="marked")
        for label, report, color in colored
    )
    return line_chart(Chart(title="Validation loss", lines=validation, zero=False)) + line_chart(
        Chart(title="Training loss, smoothed", lines=training, zero=False)
    )


def _evaluations(report: Report) -> tuple[Any, Any]:
    pairs = [(one.step, one.loss) for one in report.evaluations]
    columns = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _figures(reports: Sequence[Report]) -> Iterator[tuple[str, list[str]]]:
    """Yield names of figures and their values, a run a column."""
    yield "State", [report.status.kind for report in reports]
    yield "Steps", [_of(report.step, report.total) for report in reports]
    yield "Validation loss of the base", [_loss(report.base) for report in reports]
    yield "Best validation loss", [_loss(report.best) for report in reports]
    yield (
        "Reached at step",
        [f"{report.best.step:,}" if report.best else DASH for report in reports],
    )
    yield "Peak memory", [_peak(report) for report in reports]
    yield "Time in steps", [_seconds(report) for report in reports]
    yield "Adapter size", [_size(report) for report in reports]
    yield "Forgets (rise of the perplexity on neutral text)", [_rise(report) for report in reports]
    yield "Tokens a second", [f"{report.steps.tokens_per_second:,.0f}" for report in reports]


def _of(step: int, total: int | None) -> str:
    return f"{step:,}" if total is None else f"{step:,} of {total:,}"


def _loss(evaluation: Any) -> str:
    return DASH if evaluation is None else f"{evaluation.loss:.4f}"


def _peak(report: Report) -> str:
    peak = report.steps.peak
    return format_bytes(float(peak.max())) if len(peak) else DASH


def _seconds(report: Report) -> str:
    seconds = report.steps.seconds
    return format_seconds(float(seconds.sum())) if len(seconds) else DASH


def _size(report: Report) -> str:
    size = adapter_bytes(report)
    return DASH if size is None else format_bytes(size)


def _rise(report: Report) -> str:
    share = forgets(report)
    return DASH if share is None else format_rise(share)


def _settings(reports: Sequence[Report]) -> Iterator[tuple[str, list[str]]]:
    """Yield the settings that differ, as they were used."""
    found = [dict(_flat(_used(report))) for report in reports]
    for name in dict.fromkeys(name for one in found for name in one):
        values = [one.get(name, DASH) for one in found]
        if len(set(values)) > 1:
            yield name, values


def _used(report: Report) -> Mapping[str, Any]:
    """Return the plan of a run with what its method and its training used."""
    used = {"choice": choice_used(report.plan), "training": training_used(report)}
    return {**report.plan, **used}


def _flat(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in PARTS:
        settings = plan.get(part)
        if isinstance(settings, Mapping):
            for name, value in settings.items():
                if name not in _FACTS:
                    yield _label(part, name), _text(value)


def _label(part: str, name: str) -> str:
    plain = str(name).replace("_", "-")
    return plain if part in {"choice", "training"} else f"{part} {plain}"


def _text(value: Any) -> str:
    if value is None:  # as a setting that an older plan, or another method, does not have
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
