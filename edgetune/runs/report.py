"""The picture of a run: one HTML file that needs nothing else, no script and no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgetune.escapes import one_line
from edgetune.files import replacing
from edgetune.planning import Plan
from edgetune.runs.folder import RunFolder
from edgetune.units import format_bytes, format_count

WIDTH, HEIGHT, MARGIN = 720, 260, 48

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2em auto; color: #222 }}
table {{ border-collapse: collapse }} td {{ padding: .15em 1em .15em 0; vertical-align: top }}
td:first-child {{ color: #666 }} svg text {{ font-size: 11px; fill: #666 }}
</style></head><body>
<h1>{title}</h1>
<table>{facts}</table>
<h2>Loss</h2>
{chart}
<p>Line: training loss of each step. Dots: validation loss.</p>
</body></html>
"""

_REWARDS = {
    "Margin of rewards there": "rewards/margins",
    "Pairs told apart there": "rewards/accuracies",
    "Reward of chosen answers there": "rewards/chosen",
    "Reward of rejected answers there": "rewards/rejected",
}
"""Metrics of an objective over answers, at the best validation loss."""

Points = Sequence[tuple[float, float]]


def write_report(folder: RunFolder, plan: Plan) -> Path:
    """Write ``report.html`` from the run's metrics and return its path."""
    lines = [*folder.steps(), *folder.evaluations()]
    path = folder.path / "report.html"
    with replacing(path) as partial:
        partial.write_text(
            _PAGE.format(
                title=_shown(f"Run {folder.path.resolve().name}"),
                facts="".join(
                    f"<tr><td>{name}</td><td>{_shown(text)}</td></tr>"
                    for name, text in _facts(plan, lines)
                ),
                chart=_chart(_points(lines, "step"), _points(lines, "eval")),
            ),
            "utf-8",
        )
    return path


def _shown(text: str) -> str:
    return escape(one_line(text))


def _facts(plan: Plan, lines: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    steps = [line for line in lines if line["event"] == "step"]
    evaluations = [line for line in lines if line["event"] == "eval" and line["step"]]
    base = [line for line in lines if line["event"] == "eval" and not line["step"]]
    facts = [
        ("Model", f"{plan.model.ref}, {format_count(plan.model.parameters)} parameters"),
        ("Method", plan.choice.method.kind),
        ("Objective", plan.training.objective),
        ("Trained", f"{format_count(plan.choice.method.parameters(plan.shape))} parameters"),
        ("Device", plan.device.name),
        ("Memory planned", format_bytes(plan.memory.peak_bytes)),
    ]
    if steps:
        seconds = sum(line["seconds"] for line in steps)
        tokens = sum(line["tokens"] for line in steps)
        facts.append(("Memory at the peak", format_bytes(max(s["peak_bytes"] for s in steps))))
        facts.append(("Steps", f"{steps[-1]['step']}, {tokens / (seconds or 1):,.0f} tokens/s"))
    if base:
        facts.append(("Validation loss of the base", f"{base[-1]['loss']:.4f}"))
    if evaluations:
        best = min(evaluations, key=lambda line: line["loss"])
        facts.append(("Best validation loss", f"{best['loss']:.4f} after step {best['step']}"))
        facts += [(name, f"{best[key]:.4g}") for name, key in _REWARDS.items() if key in best]
    return facts


def _points(lines: Sequence[dict[str, Any]], event: str) -> Points:
    return [(line["step"], line["loss"]) for line in lines if line["event"] == event]


def _chart(steps: Points, evaluations: Points) -> str:
    """Return an SVG with a line through ``steps`` and a dot for each of ``evaluations``."""
    if not steps:
        return "<p>No step was taken.</p>"
    last = max(x for x, _ in steps) or 1
    top = max(y for _, y in (*steps, *evaluations))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * point[0] / last
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * point[1] / (top or 1)
        return round(x, 1), round(y, 1)

    line = " ".join(f"{x},{y}" for x, y in map(place, steps))
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="3" fill="#c2410c"/>' for x, y in map(place, evaluations)
    )
    bottom = HEIGHT - MARGIN
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss by step">'
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{WIDTH - MARGIN}" fill="none" stroke="#999"/>'
        f'<polyline points="{line}" fill="none" stroke="#1d4ed8" stroke-width="1.5"/>{dots}'
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{top:.2f}</text>'
        f'<text x="{MARGIN - 6}" y="{bottom + 4}" text-anchor="end">0</text>'
        f'<text x="{WIDTH - MARGIN}" y="{bottom + 18}" text-anchor="end">step {last:.0f}</text>'
        "</svg>"
    )
