"""Several runs on one page: a table, their losses as charts, what to know of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgetune.report.charts import Chart, Line, line_chart
from edgetune.report.contents import Report
from edgetune.report.markup import bullets, table, text
from edgetune.report.page import document
from edgetune.report.series import Floats, smoothed

COLORS = 6


def comparison_page(
    title: str,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    reports: Sequence[tuple[str, Report]],
    notes: Sequence[str],
) -> str:
    """Return a whole HTML page; each of ``tables`` is a caption, a header and rows of plain text."""
    shown = "".join(
        table(
            [[text(cell) for cell in row] for row in rows], list(map(text, header)), text(caption)
        )
        for caption, header, rows in tables
    )
    said = bullets(text(note, 1000) for note in notes)
    return document(
        "edgetune comparison",
        title,
        f'<section aria-labelledby="figures"><h2 id="figures">Figures</h2>{shown}{said}</section>'
        f'<section aria-labelledby="losses"><h2 id="losses">Losses</h2>{_charts(reports)}</section>',
    )


def _charts(reports: Sequence[tuple[str, Report]]) -> str:
    training, validation = [], []
    for index, (name, report) in enumerate(reports):
        color = f"c{index % COLORS + 1}"
        training.append(Line(name, report.steps.step, smoothed(report.steps.loss), color))
        validation.append(Line(name, *_evaluations(report), color, "marked"))
    return line_chart(
        Chart(title="Validation loss", lines=tuple(validation), zero=False)
    ) + line_chart(Chart(title="Training loss, smoothed", lines=tuple(training), zero=False))


def _evaluations(report: Report) -> tuple[Floats, Floats]:
    pairs = np.array([(one.step, one.loss) for one in report.evaluations], np.float64)
    columns = pairs.reshape(-1, 2)
    return columns[:, 0], columns[:, 1]
