"""Studies as pages: matrices of numbers as tables whose cells are shaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgetune.report.charts import Chart, line_chart, number
from edgetune.report.markup import DASH, text
from edgetune.report.page import document

SHADES = 8
"""Steps of shade, ``h0`` to ``h8`` in the style sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A matrix of numbers; ``low`` and ``high`` are where shading begins and ends."""

    caption: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    low: float
    high: float
    corner: str = ""


def study_page(
    title: str,
    lead: str,
    heats: Sequence[Heat],
    notes: Sequence[str] = (),
    charts: Sequence[Chart] = (),
) -> str:
    """Return a whole HTML page."""
    said = "".join(f"<p>{text(note, 1000)}</p>" for note in notes)
    return document(
        "edgetune study",
        title,
        f'<p class="lead">{text(lead, 1000)}</p>'
        + "".join(map(line_chart, charts))
        + "".join(map(_table, heats))
        + said,
    )


def _table(heat: Heat) -> str:
    caption = text(heat.caption)
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heat.columns)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(_cell(heat, x) for x in row)}</tr>'
        for name, row in zip(heat.rows, heat.values, strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f'<table class="figures heat"><caption>{caption}</caption>'
        f'<thead><tr><th scope="col">{text(heat.corner)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(heat: Heat, value: float | None) -> str:
    if value is None:
        return f"<td>{DASH}</td>"
    share = (value - heat.low) / (heat.high - heat.low) if heat.high > heat.low else 0.0
    return f'<td class="h{round(SHADES * min(1.0, max(0.0, share)))}">{number(value)}</td>'
