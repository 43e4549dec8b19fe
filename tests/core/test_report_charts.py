"""Charts: what they promise of any series, whatever is in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.report import Band, Bar, Chart, Guide, Line, bar_chart, line_chart, style
from edgetune.report.scales import linear, logarithmic, steps
from edgetune.report.series import COLUMNS, smoothed, thinned

finite = st.floats(-1e9, 1e9, allow_nan=False)
positive = st.floats(1e-6, 1e9)


def counted(values: list[float]) -> np.ndarray:
    return np.arange(1.0, len(values) + 1)


@given(st.lists(finite, min_size=1, max_size=300), st.integers(1, 20))
def test_thinning_keeps_the_extremes_the_ends_and_the_order(values: list[float], n: int) -> None:
    x, y = thinned(counted(values), np.array(values), columns=n)
    assert len(x) <= max(4 * n, 1)
    assert (y.min(), y.max()) == (min(values), max(values))
    assert (x[0], y[0], x[-1], y[-1]) == (1, values[0], len(values), values[-1])
    assert (np.diff(x) > 0).all()
    assert all(values[int(at) - 1] == value for at, value in zip(x, y, strict=True))


@given(st.lists(finite, min_size=1, max_size=200))
def test_smoothing_stays_within_the_values(values: list[float]) -> None:
    means = smoothed(np.array(values))
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert len(means) == len(values)
    assert means.min() >= min(values) - slack
    assert means.max() <= max(values) + slack


def test_smoothing_does_not_lag_behind_a_straight_line() -> None:
    falling = np.linspace(8.0, 1.0, 500)
    assert np.allclose(smoothed(falling), falling)


@given(finite, finite)
def test_linear_axes_hold_their_values_between_few_round_ticks(one: float, other: float) -> None:
    low, high = sorted((one, other))
    scale, slack = linear(low, high), 1e-6 * max(abs(low), abs(high))
    assert scale.low <= low + slack
    assert scale.high >= high - slack
    assert scale.low < scale.high
    assert 2 <= len(scale.ticks) <= 8
    assert list(scale.ticks) == sorted(set(scale.ticks))


@given(positive, positive)
def test_logarithmic_axes_hold_their_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    scale = logarithmic(low, high)
    least = max(low, high * 1e-6)
    assert scale.low <= least * 1.001
    assert scale.high >= high * 0.999
    assert 2 <= len(scale.ticks) <= 9
    assert 0 <= scale.at(high) <= 1.0001


def test_a_logarithmic_axis_holds_the_smallest_numbers() -> None:
    scale = logarithmic(1e-320, 1e-30)
    assert 0 < scale.low < scale.high < 1e-11


@given(st.integers(1, 10**7))
def test_axes_of_steps_end_with_the_last_step(last: int) -> None:
    scale = steps(float(last))
    assert scale.ticks[-1] == last
    assert all(tick == int(tick) for tick in scale.ticks)
    assert len(scale.ticks) <= 7
    assert all(scale.at(tick) <= 0.75 for tick in scale.ticks[:-1])


def drawn(html: str) -> ET.Element:
    """Return a figure as XML, which it must be."""
    return ET.fromstring(html)


@given(st.lists(finite, min_size=1, max_size=60), st.booleans())
def test_every_point_lies_in_the_plot(values: list[float], log: bool) -> None:
    line = Line("loss", counted(values), np.array(values), shape="marked")
    html = line_chart(Chart(title="Loss", lines=(line,), guides=(Guide("base", 3.0),), log=log))
    drawn(html)
    found = [
        float(n) for d in re.findall(r' d="([^"]*)"', html) for n in re.findall(r"-?\d+\.\d", d)
    ]
    assert found
    assert all(-0.1 <= number <= 1000.1 for number in found)


def test_a_chart_speaks_to_who_cannot_see_it() -> None:
    line = Line("training", np.array([1.0, 2.0, 9.0]), np.array([4.0, 2.5, 0.5]))
    figure = drawn(line_chart(Chart(title="Loss", lines=(line,), guides=(Guide("base", 7.0),))))
    plot = figure.find(".//svg[@role='img']")
    assert plot is not None
    assert plot.findtext("title") == "Loss"
    said = plot.findtext("desc") or ""
    assert "from 4 at step 1 to 0.5 at step 9, least 0.5, most 4" in said
    assert "base: 7" in said
    cells = [cell.text for cell in figure.iterfind(".//table//td")]
    assert cells == ["4", "2.5", "0.5", "7"]


def test_a_value_that_is_no_number_is_left_out() -> None:
    y = np.array([1.0, np.nan, 2.0])
    html = line_chart(Chart(title="Rate", lines=(Line("rate", counted([1, 2, 3]), y),)))
    drawn(html)
    assert "nan" not in html.split("<details>")[0].split("<desc>")[0]
    assert html.count("L") >= 1


def test_a_chart_of_nothing_is_a_sentence() -> None:
    none = Line("loss", np.empty(0), np.empty(0))
    assert line_chart(Chart(title="Loss", lines=(none,))) == "<p>Loss: nothing was measured.</p>"


def test_bands_bars_and_labels_are_drawn_and_escaped() -> None:
    x = np.array([0.0, 1.0])
    band = Band(low=np.array([0.5, 0.5]), high=np.array([2.0, 1.5]))
    name = "</title><script>alert(1)</script>\x1b[2J"
    html = line_chart(Chart(title=name, lines=(Line(name, x, x + 1, band=band),)))
    html += bar_chart(name, [(name, [Bar(name, 3.0, note=name)])])
    drawn(f"<div>{html}</div>")
    assert 'class="band c1"' in html
    assert "<script" not in html
    assert "\x1b" not in html


@pytest.mark.parametrize("count", [1, 2, 5_000, 100_000])
def test_a_chart_stays_small_however_long_the_run(count: int) -> None:
    rng = np.random.default_rng(0)
    line = Line("loss", counted([0.0] * count), rng.random(count))
    assert len(line_chart(Chart(title="Loss", lines=(line,)))) < 40 * COLUMNS + 20_000


def palettes() -> list[dict[str, str]]:
    """Return the colours of the style sheet: light, dark, and printed."""
    found = [dict(re.findall(r"--([\w]+):\s*(#[0-9a-f]{3,6})", part)) for part in
             re.findall(r":root \{([^}]*)\}", style())]  # fmt: skip
    light, dark, printed = found
    return [light, {**light, **dark}, {**light, **printed}]


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_lines_stand_out_from_what_is_behind_them(number: int) -> None:
    palette = palettes()[number]
    for ground in ("paper", "card", "shade"):
        for name in ("ink", "soft", "good", "warn", "bad", "c1"):
            found = contrast(palette[name], palette[ground])
            assert found >= 4.5, f"{name} on {ground}: {found:.2f}"
        for name in ("c1", "c2", "c3", "c4", "c5", "c6", "muted"):
            assert contrast(palette[name], palette[ground]) >= 3
