"""``edgetune study``: experiments with trained adapters, and with what a task takes to be learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgetune.cli.options import FilePath, Ref, common_options, over_options
from edgetune.cli.robustness import command as robustness
from edgetune.cli.show import say
from edgetune.cli.study_page import html_option, show
from edgetune.report.charts import Chart, Guide, Line
from edgetune.report.studies import Heat
from edgetune.workflows.dimension import (
    GRID,
    SHARE,
    DimensionRequest,
    intrinsic_dimension,
)
from edgetune.workflows.over import Over
from edgetune.workflows.studying import (
    Moved,
    Movement,
    ablation,
    movement,
    shared_directions,
)

SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Ranks that a table of directions shows, besides the full one."""


class Counts(click.ParamType["tuple[int, ...]"]):
    """Whole numbers separated by commas."""

    name = "counts"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not whole numbers separated by commas.", param, ctx)


@click.group("study", short_help="See what in an adapter matters, and what a task takes.")
def command() -> None:
    """Study trained adapters, and what a task takes to be learned."""


@command.command("blocks")
@click.argument("name", type=Ref(), metavar="REF")
@click.option("--data", type=FilePath(), required=True, metavar="FILE", help="Rows to predict.")
@click.option(
    "--spans",
    type=click.IntRange(2, 64),
    default=6,
    show_default=True,
    metavar="N",
    help="Parts that the blocks are divided into; the time grows with their square.",
)
@html_option
@over_options
@common_options
def blocks(name: str, data: Path, spans: int, html: Path | None, over: Over, as_json: bool) -> None:
    """Print the loss on --data with REF's adapter left out of each span of blocks.

    If it hardly rises without the first blocks, train only the others, with --layers.
    """
    found = ablation(
        name, data, over, spans=spans, tell=lambda done, of: say(f"{done} of {of} losses")
    )
    first, last = found.thirds
    lead = (
        f"{found.rows} rows: loss {found.whole:.4f} with the whole adapter, {found.base:.4f} without. "
        f"Leaving out about the first third of the blocks costs {first:+.4f}, the last third "
        f"{last:+.4f}."
    )
    ends = [str(edge - 1) for edge in found.edges[1:]]
    heat = Heat(
        caption="Loss without a span of blocks",
        corner="from \\ to",
        rows=[f"block {edge}" for edge in found.edges[:-1]],
        columns=ends,
        values=found.without,
        low=found.whole,
        high=max(found.base, found.whole),
    )
    show(f"Blocks of {name}", lead, [heat], html, found, as_json=as_json)


@command.command("directions")
@click.argument("one", type=Ref(), metavar="REF")
@click.argument("other", type=Ref(), metavar="REF")
@html_option
@over_options
@common_options
def directions(one: str, other: str, html: Path | None, over: Over, as_json: bool) -> None:
    """Print how much of one low-rank adapter's directions lies in another's.

    1 is all of it; each table says what chance would give. If only the first few directions of a
    rank-8 adapter lie in a rank-64 one, a rank that small is enough for the task. Train the two
    with different --seed values: the directions read start at random values, which a seed determines.
    """
    found = shared_directions(one, other, over)
    heats = [
        heat
        for side, (what, tables) in enumerate((("read", found.inputs), ("written", found.outputs)))
        for heat in _directions(what, tables, {name: x[side] for name, x in found.chance.items()})
    ]
    lead = (
        f"Rows are directions of {one}, columns those of {other}. Each table says what random ones "
        "would share at the full ranks."
    )
    show(f"Directions of {one} and {other}", lead, heats, html, found, as_json=as_json)


@command.command("weights")
@click.argument("name", type=Ref(), metavar="REF")
@html_option
@over_options
@common_options
def weights(name: str, html: Path | None, over: Over, as_json: bool) -> None:
    """Print how much REF's adapter lengthens and rotates the rows of the base's matrices."""
    found = movement(name, over)
    lead = "Mean change of the norm of a matrix's rows, and mean of 1 - cos between rows before and after."
    if found.correlation is not None:
        lead += f" The two correlate by {found.correlation:+.2f} over all matrices."
    heats = [
        _by_block("Change of the norm", found, "magnitude"),
        _by_block("Rotation (1 - cos)", found, "direction"),
    ]
    show(f"Weights of {name}", lead, heats, html, found, as_json=as_json)


@command.command("intrinsic-dimension")
@click.option("--data", type=FilePath(), required=True, metavar="FILE", help="Rows of the task.")
@click.option(
    "--dimensions",
    type=Counts(),
    default=GRID,
    metavar="N,...",
    help=f"Powers of two, rising. [default: {','.join(map(str, GRID))}]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 20),
    default=1,
    show_default=True,
    metavar="N",
    help="Times that all is done, with another seed.",
)
@click.option(
    "--share",
    type=float,
    default=SHARE,
    show_default=True,
    help="What counts as learned: a share of the fall of the loss with all weights.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps of each training.")
@html_option
@over_options
@common_options
def dimension(
    data: Path,
    dimensions: tuple[int, ...],
    seeds: int,
    share: float,
    steps: int | None,
    html: Path | None,
    over: Over,
    as_json: bool,
) -> None:
    """Print how few numbers, moved together, learn --data as well as all weights do.

    Trains --model with all weights of its blocks, and then in random subspaces of each of
    --dimensions. The smallest that lowers the validation loss by --share of what all weights lower it by is
    the dimension of the task for this model.
    """
    found = intrinsic_dimension(
        DimensionRequest(
            data=data, over=over, dimensions=dimensions, seeds=seeds, share=share,
            training={} if steps is None else {"steps": steps},
        ),
        lambda done, of: say(f"{done} of {of} trainings"),
    )  # fmt: skip
    reached = (
        f"{found.dimension:,} numbers"
        if found.dimension
        else f"more than {dimensions[-1]:,} numbers"
    )
    lead = (
        f"{reached} reach {share:.0%} of the fall of the validation loss that all "
        f"{found.full_parameters:,} weights reach in {found.steps} steps over {found.rows} rows of "
        f"{found.model}: from {found.curves[0].base:.4f} to {found.curves[0].full:.4f}."
    )
    heat = Heat(
        caption="Share of the fall of the loss",
        corner="dimension",
        rows=[f"{one:,}" for one in dimensions],
        columns=[f"seed {curve.seed}" for curve in found.curves],
        values=[[c.points[i].share for c in found.curves] for i in range(len(dimensions))],
        low=0.0,
        high=1.0,
    )
    x = np.log2(np.array(dimensions, float))
    chart = Chart(
        title="Share of the fall of the loss by dimension",
        lines=tuple(
            Line(f"seed {curve.seed}", x, np.array([p.share for p in curve.points]),
                 color=f"c{1 + number % 6}", shape="marked")
            for number, curve in enumerate(found.curves)
        ),
        guides=(Guide(f"{share:.0%}", share),),
        x_label="log2 of the dimension",
    )  # fmt: skip
    title = f"Dimension of {data.name} for {found.model}"
    show(title, lead, [heat], html, found, as_json=as_json, charts=[chart])


def _directions(
    what: str,
    tables: Mapping[str, tuple[tuple[float, ...], ...]],
    chance: Mapping[str, float],
) -> Iterator[Heat]:
    """Yield a table for each projection, of some ranks and the full ones."""
    for module, values in tables.items():
        rows, columns = _shown(len(values)), _shown(len(values[0]))
        yield Heat(
            caption=f"{module}, what is {what} (by chance {chance[module]:.3g})",
            corner="rank",
            rows=list(map(str, rows)),
            columns=list(map(str, columns)),
            values=[[values[i - 1][j - 1] for j in columns] for i in rows],
            low=0.0,
            high=1.0,
        )


def _shown(rank: int) -> list[int]:
    return [*(each for each in SHOWN if each < rank), rank]


def _by_block(caption: str, found: Movement, what: str) -> Heat:
    targets = list(dict.fromkeys(each.target for each in found.matrices))
    layers = sorted({each.layer for each in found.matrices})
    by_place: dict[tuple[int, str], Moved] = {(x.layer, x.target): x for x in found.matrices}
    values = [
        [
            getattr(by_place[layer, target], what) if (layer, target) in by_place else None
            for target in targets
        ]
        for layer in layers
    ]
    return Heat(
        caption=caption,
        corner="block",
        rows=list(map(str, layers)),
        columns=targets,
        values=values,
        low=0.0,
        high=max((x for row in values for x in row if x is not None), default=0.0),
    )


command.add_command(robustness)
