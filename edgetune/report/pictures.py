"""The charts of a run: losses, learning rate, memory, speed."""

from __future__ import annotations

import numpy as np

from edgetune.report.charts import Bar, Chart, Guide, Line, bar_chart, line_chart
from edgetune.report.contents import Report, figure, value
from edgetune.report.series import smoothed
from edgetune.units import format_bytes

WIDE_RANGE = 8.0
"""Ratio of losses from which their axis is logarithmic."""

PHASES = {"load": "Loading", "train": "Training", "evaluate": "Evaluating", "save": "Saving"}

PARTS = {
    "weights": "Base weights", "adapter": "Adapter", "gradients": "Gradients",
    "optimizer": "Optimizer", "activations": "Activations", "loss": "Logits and loss",
    "workspace": "Workspace", "runtime": "Runtime",
}  # fmt: skip


def loss_chart(report: Report) -> str:
    """Return the losses: each step's, their smoothed mean, validation, and the base's."""
    steps, trained = report.steps, [one for one in report.evaluations if one.step]
    mean = smoothed(steps.loss) if len(steps) else steps.loss
    lines = [
        Line("training, each step", steps.step, steps.loss, "c1", "thin", in_table=False),
        Line("training, smoothed", steps.step, mean, "c1"),
    ]
    if trained:
        x = np.array([float(one.step) for one in trained])
        y = np.array([one.loss for one in trained])
        lines.append(Line("validation", x, y, "c2", "marked"))
    guides = () if report.base is None else (Guide("base on validation", report.base.loss),)
    values = [line.y for line in lines] + [np.array([guide.value]) for guide in guides]
    everything = np.concatenate(values)
    wide = len(everything) > 0 and everything.min() > 0
    return line_chart(
        Chart(
            title="Training and validation loss" if trained else "Training loss",
            lines=tuple(lines),
            guides=guides,
            end=_end(report),
            log=bool(wide and everything.max() > WIDE_RANGE * everything.min()),
        )
    )


def rate_chart(report: Report) -> str:
    """Return the learning rate of each step."""
    line = Line("learning rate", report.steps.step, report.steps.rate, "c3")
    return line_chart(Chart(title="Learning rate", lines=(line,), end=_end(report)))


def speed_chart(report: Report) -> str:
    """Return the tokens a second of the steps, and what was planned."""
    steps = report.steps
    speed = steps.tokens / np.maximum(steps.seconds, 1e-9)
    lines = (
        Line("each step", steps.step, speed, "c4", "thin", in_table=False),
        Line("smoothed", steps.step, smoothed(speed) if len(speed) else speed, "c4"),
    )
    return line_chart(Chart(title="Tokens a second", lines=lines, end=_end(report)))


def memory_chart(report: Report) -> str:
    """Return the peak of the process over time, and the plan's."""
    planned = figure(report.plan, "memory", "peak_bytes")
    guides = () if planned is None else (Guide("planned peak", planned),)
    line = Line("peak so far", report.steps.step, report.steps.peak, "c1")
    return line_chart(
        Chart(
            title="Memory over time",
            lines=(line,),
            guides=guides,
            end=_end(report),
            format=_bytes,
        )
    )


def phase_chart(report: Report) -> str:
    """Return planned and measured peaks of each phase of the run."""
    groups = []
    for name, shown in PHASES.items():
        planned = figure(report.plan, "memory", "phases", name)
        measured = figure(report.memory, "phases", name, "bytes")
        bars = [] if planned is None else [Bar("planned", planned, "muted")]
        if measured is not None:
            exact = value(report.memory, "phases", name, "exact") is True
            bars.append(Bar("measured", measured, "c1", "" if exact else "\u2264"))
        if bars:
            groups.append((shown, bars))
    return bar_chart("Memory by phase", groups, _bytes) if groups else ""


def parts_chart(report: Report) -> str:
    """Return what the plan's peak consists of."""
    found = [
        (shown, size)
        for name, shown in PARTS.items()
        if (size := figure(report.plan, "memory", "parts", name))
    ]
    bars = [Bar(shown, size, "muted") for shown, size in sorted(found, key=lambda one: -one[1])]
    title = "Planned peak of training, by part"
    return bar_chart(title, [("", bars)], _bytes) if bars else ""


def _end(report: Report) -> float | None:
    """Return the last step of the axis: as far as the run was to go, if it came a good way."""
    total = report.total
    return float(total) if total and report.step * 10 >= total else None


def _bytes(size: float) -> str:
    return format_bytes(size) if size else "0"
