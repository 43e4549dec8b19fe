"""Runs side by side as tables of text: at most 80 columns on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from edgetune.cli.score_text import COLUMNS, measured
from edgetune.cli.show import table
from edgetune.report.markup import DASH
from edgetune.units import format_bytes, format_rise, format_seconds
from edgetune.workflows.run_figures import RunFigures
from edgetune.workflows.scoring import Scores

NONE = DASH
_WIDTH, _GAP = 80, 2
_LEAST_NAME = 8
_FIGURES = ("", "loss", "peak", "planned", "time", "steps", "size", "forgets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A caption, and plain text in rows under a header."""

    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def terminal(
    figures: Sequence[RunFigures], bases: Mapping[str, Scores], notes: Sequence[str]
) -> str:
    """Return runs as they are shown on a terminal."""
    parts = [f"{one.caption}\n{_fitted(one)}" for one in tables(figures, bases)]
    said = [fill(f"Note: {note}", _WIDTH, subsequent_indent="  ") for note in notes]
    return "\n\n".join([*parts, *said])


def tables(figures: Sequence[RunFigures], bases: Mapping[str, Scores]) -> Iterator[Table]:
    """Yield the figures of runs, then their scores on held-out rows, if there are any."""
    base = next((one.base_loss for one in figures if one.base_loss is not None), None)
    same = len({one.base_loss for one in figures if one.base_loss is not None}) == 1
    first = [("base", f"{base:.4f}", *(NONE,) * 6)] if same and base is not None else []
    yield Table(
        caption="Validation loss; forgets: rise of the perplexity on neutral text",
        header=_FIGURES,
        rows=[*first, *map(_figures, figures)],
    )
    each = {(f"base {ref}" if len(bases) > 1 else "base"): one for ref, one in bases.items()}
    each |= {one.name: one.scores for one in figures if one.scores is not None}
    if each:
        yield from _scores(each)


def _figures(one: RunFigures) -> tuple[str, ...]:
    forgets = one.forgets
    return (
        one.name,
        NONE if one.loss is None else f"{one.loss:.4f}",
        NONE if one.peak_bytes is None else format_bytes(one.peak_bytes),
        NONE if one.planned_bytes is None else format_bytes(one.planned_bytes),
        format_seconds(one.seconds) if one.seconds else NONE,
        f"{one.steps:,}" if one.steps else NONE,
        NONE if one.adapter_bytes is None else format_bytes(one.adapter_bytes),
        NONE if forgets is None else format_rise(forgets),
    )


def _scores(each: Mapping[str, Scores]) -> Iterator[Table]:
    for asked in COLUMNS:
        columns = measured(asked, each.values())
        if columns:
            yield Table(
                caption=f"On the held-out rows: {asked}",
                header=("", *(one.title for one in columns)),
                rows=[
                    (name, *(one.text(found) for one in columns)) for name, found in each.items()
                ],
            )


def _fitted(one: Table) -> str:
    """Return a table no wider than a terminal: long names lose what all begin with, or how they do."""
    cells = list(zip(*((one.header, *one.rows)), strict=True))
    rest = sum(_GAP + max(map(len, column)) for column in cells[1:])
    room = max(_LEAST_NAME, _WIDTH - rest)
    names = _apart([name for name, *_ in one.rows], room)
    return table([(name, *row[1:]) for name, row in zip(names, one.rows, strict=True)], one.header)


def _apart(names: Sequence[str], room: int) -> list[str]:
    """Return names that fit into so many signs, if need be without the folder that all are in.

    >>> _apart(["base", "runs/compare-home/lora", "runs/compare-home/bitfit"], 12)
    ['base', 'lora', 'bitfit']
    >>> _apart(["base", "runs/compare-home/lora"], 30)
    ['base', 'runs/compare-home/lora']
    """
    if max(map(len, names), default=0) > room:
        folders = {name.rpartition("/")[0] for name in names if "/" in name}
        shared = folders.pop() if len(folders) == 1 else ""
        names = [name.removeprefix(f"{shared}/") if shared else name for name in names]
    return [name if len(name) <= room else f"…{name[1 - room :]}" for name in names]
