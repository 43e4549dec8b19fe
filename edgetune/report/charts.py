"""Charts as inline SVG: lines with bands and marks, bars beside each other, a legend, a table.

Drawn by this file alone: no script, no style attributes, no request. The plot fills whatever width it
is given, with text and strokes of constant size, so that a phone shows what a desk does. Colours
are classes (``c1`` … ``c6``, ``muted``) that the style sheet of :mod:`edgetune.report` knows in light
and dark. Every chart has a title, a description and its numbers as a table.

>>> line = Line("loss", np.array([1.0, 2.0]), np.array([3.0, 2.5]))
>>> line_chart(Chart(title="Loss", lines=(line,))).startswith('<figure class="chart">')
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgetune.report.markup import DASH, table, text
from edgetune.report.scales import Scale, linear, logarithmic, steps
from edgetune.report.series import Floats, thinned

UNITS = 1000
"""Units of the plot in both directions; two decimals less than a pixel anywhere."""

TABLE_ROWS = 12
"""Rows of the table under a chart of lines."""

Format = Callable[[float], str]
Shape = Literal["line", "thin", "dashed", "marked"]
"""``marked`` is a line with a dot at every point."""


def number(value: float) -> str:
    """Return a number with four significant digits.

    >>> number(0.00123456), number(2.5), number(100000.0)
    ('0.001235', '2.5', '100,000')
    """
    if value and (abs(value) < 1e-4 or abs(value) >= 1e7):
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """What lies around a line: ``low`` and ``high`` (N,) at the line's own ``x``."""

    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Line:
    """A series: ``x`` and ``y`` (N,), ``x`` not falling; ``color`` is a class of the style sheet."""

    label: str
    x: Floats
    y: Floats
    color: str = "c1"
    shape: Shape = "line"
    band: Band | None = None
    in_table: bool = True


@dataclass(frozen=True, slots=True)
class Guide:
    """A horizontal line at a value, such as a limit."""

    label: str
    value: float
    color: str = "muted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over one horizontal axis, which begins at 0 and ends at ``end`` or the last point."""

    title: str
    lines: tuple[Line, ...]
    guides: tuple[Guide, ...] = ()
    description: str = ""
    x_label: str = "step"
    end: float | None = None
    zero: bool = True
    """Whether the vertical axis begins at zero, where it is linear."""
    log: bool = False
    format: Format = number
    """How values of the vertical axis are written."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a group; ``note`` stands before its value."""

    label: str
    value: float
    color: str = "c1"
    note: str = ""


def line_chart(chart: Chart) -> str:
    """Return a chart of lines as an HTML figure; a sentence where there is nothing to draw."""
    lines = tuple(line for line in map(_finite, chart.lines) if len(line.x))
    if not lines:
        return f"<p>{text(chart.title)}: nothing was measured.</p>"
    x = steps(max(chart.end or 0.0, *(float(line.x[-1]) for line in lines)))
    y = _vertical(chart, lines)
    parts = [_axes(x, y, chart), *(_guide(guide, y) for guide in chart.guides)]
    parts.append(
        f'<svg viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" width="100%" height="100%">'
        + "".join(_line(line, x, y) for line in lines)
        + "</svg>"
    )
    described = chart.description or _said(chart, lines)
    svg = (
        f'<svg class="plot" role="img" width="100%" height="100%"><title>{text(chart.title)}</title>'
        f"<desc>{text(described, 1000)}</desc>{''.join(parts)}</svg>"
    )
    return _figure(chart.title, _legend(lines, chart.guides), svg, _numbers(chart, lines))


def bar_chart(
    title: str,
    groups: Sequence[tuple[str, Sequence[Bar]]],
    written: Format = number,
    limit: Guide | None = None,
) -> str:
    """Return groups of horizontal bars; their numbers stand beside them as text."""
    values = [bar.value for _, bars in groups for bar in bars]
    top = max([*values, limit.value if limit else 0.0], default=0.0) or 1.0
    rows = []
    for name, bars in groups:
        drawn = "".join(_bar(bar, top, written) for bar in bars)
        heading = f'<p class="group-name">{text(name)}</p>' if name else ""
        rows.append(f'<div class="group">{heading}{drawn}</div>')
    below = f'<p class="note">{text(limit.label)}: {written(limit.value)}</p>' if limit else ""
    return (
        f'<figure class="chart bars"><figcaption>{text(title)}</figcaption>'
        f"{''.join(rows)}{below}</figure>"
    )


def _bar(bar: Bar, top: float, written: Format) -> str:
    width = max(0.4, 100 * bar.value / top)
    return (
        f'<div class="bar"><span class="name">{text(bar.label)}</span>'
        '<svg class="track" aria-hidden="true" width="100%" height="10">'
        f'<rect class="fill {bar.color}" width="{width:.1f}%" height="10" rx="2"/></svg>'
        f'<span class="value">{f"{text(bar.note)} " if bar.note else ""}{written(bar.value)}</span>'
        "</div>"
    )


def _finite(line: Line) -> Line:
    """Return a line without the points that cannot be drawn."""
    band = line.band
    there = np.isfinite(line.x) & np.isfinite(line.y)
    if band is not None:
        there &= np.isfinite(band.low) & np.isfinite(band.high)
        band = Band(low=band.low[there], high=band.high[there])
    return replace(line, x=line.x[there], y=line.y[there], band=band)


def _vertical(chart: Chart, lines: Sequence[Line]) -> Scale:
    values = [line.y for line in lines]
    values += [edge for line in lines if line.band for edge in (line.band.low, line.band.high)]
    values += [np.array([guide.value]) for guide in chart.guides]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if chart.log and low > 0:
        return logarithmic(low, high)
    return linear(min(0.0, low) if chart.zero else low, high)


def _axes(x: Scale, y: Scale, chart: Chart) -> str:
    """Return grid and labels; they are hidden from readers of the description."""
    parts = []
    for tick in y.ticks:
        at = f"{100 * (1 - y.at(tick)):.2f}%"
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text x="0" dx="-8" y="{at}" dy="0.35em" text-anchor="end">{chart.format(tick)}</text>'
        )
    for tick in x.ticks:
        at, anchor = f"{100 * x.at(tick):.2f}%", "end" if tick == x.high else "middle"
        shown = f"{chart.x_label} {tick:,.0f}" if tick == x.high else f"{tick:,.0f}"
        parts.append(
            f'<text x="{at}" y="100%" dy="1.6em" text-anchor="{anchor}">{text(shown)}</text>'
        )
    parts.append('<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>')
    return f'<g aria-hidden="true">{"".join(parts)}</g>'


def _guide(guide: Guide, y: Scale) -> str:
    at = f"{100 * (1 - y.at(guide.value)):.2f}%"
    return f'<line class="guide {guide.color}" x1="0" x2="100%" y1="{at}" y2="{at}"/>'


def _line(line: Line, x: Scale, y: Scale) -> str:
    band = "" if line.band is None else _band(line, line.band, x, y)
    points = _points(*thinned(line.x, line.y), x, y)
    if line.shape != "marked":
        return f'{band}<path class="{line.shape} {line.color}" d="{_path(points)}"/>'
    marks = "".join(f"M{a} {b}h0" for a, b in points)
    return (
        f'{band}<path class="line {line.color}" d="{_path(points)}"/>'
        f'<path class="marks {line.color}" d="{marks}"/>'
    )


def _band(line: Line, band: Band, x: Scale, y: Scale) -> str:
    above = _points(*thinned(line.x, band.high), x, y)
    below = _points(*thinned(line.x, band.low), x, y)
    return f'<path class="band {line.color}" d="{_path([*above, *below[::-1]])}Z"/>'


def _points(xs: Floats, ys: Floats, x: Scale, y: Scale) -> list[tuple[str, str]]:
    across, down = UNITS * x.share(xs), UNITS * (1 - y.share(ys))
    pairs = zip(across.tolist(), down.tolist(), strict=True)
    return [(f"{a:.1f}", f"{b:.1f}") for a, b in pairs]


def _path(points: Sequence[tuple[str, str]]) -> str:
    if len(points) == 1:
        return f"M{points[0][0]} {points[0][1]}h0"
    return "".join(f"{'L' if i else 'M'}{a} {b}" for i, (a, b) in enumerate(points))


def _legend(lines: Sequence[Line], guides: Sequence[Guide]) -> str:
    entries: list[tuple[str, str, str]] = [(one.label, one.shape, one.color) for one in lines]
    entries += [(guide.label, "guide", guide.color) for guide in guides]
    items = "".join(
        f'<li><svg aria-hidden="true" width="22" height="10">{_key(shape, color)}</svg>'
        f"{text(label)}</li>"
        for label, shape, color in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _key(shape: str, color: str) -> str:
    """Return what stands for a line in the legend."""
    if shape != "marked":
        return f'<path class="{shape} {color}" d="M1 5H21"/>'
    return f'<path class="line {color}" d="M1 5H21"/><path class="marks {color}" d="M11 5h0"/>'


def _figure(title: str, legend: str, svg: str, numbers: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{text(title)}</figcaption>{legend}'
        f'<div class="frame">{svg}</div>'
        f"<details><summary>{text(title)} as a table</summary>{numbers}</details></figure>"
    )


def _numbers(chart: Chart, lines: Sequence[Line]) -> str:
    """Return some values of every line, at steps that are spread over the chart."""
    shown = [line for line in lines if line.in_table]
    at = np.unique(np.concatenate([line.x for line in shown])) if shown else np.array([])
    if len(at) > TABLE_ROWS:
        at = at[np.unique(np.linspace(0, len(at) - 1, TABLE_ROWS).round().astype(int))]
    rows = [(f"{x:,.0f}", *(_value_at(line, x, chart.format) for line in shown)) for x in at]
    rows += [(text(guide.label), *([chart.format(guide.value)] * len(shown)))
             for guide in chart.guides]  # fmt: skip
    header = (text(chart.x_label), *(text(line.label) for line in shown))
    return table(rows, header, f"{text(chart.title)}, some of its values")


def _value_at(line: Line, x: float, written: Format) -> str:
    """Return the last value up to ``x``; marks have values only where they are."""
    index = int(np.searchsorted(line.x, x, side="right")) - 1
    if index < 0 or (line.shape == "marked" and line.x[index] != x):
        return DASH
    return written(float(line.y[index]))


def _said(chart: Chart, lines: Sequence[Line]) -> str:
    """Return what a chart shows, in words."""
    said = [
        f"{line.label}: from {chart.format(float(line.y[0]))} at {chart.x_label} {line.x[0]:,.0f} "
        f"to {chart.format(float(line.y[-1]))} at {chart.x_label} {line.x[-1]:,.0f}, "
        f"least {chart.format(float(line.y.min()))}, most {chart.format(float(line.y.max()))}."
        for line in lines
    ]
    said += [f"{guide.label}: {chart.format(guide.value)}." for guide in chart.guides]
    return " ".join(said)
