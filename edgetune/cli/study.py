"""``edgetune study``: experiments with trained adapters that train nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from edgetune.cli.options import FilePath, Ref, common_options, over_options
from edgetune.cli.show import out, out_json, say, table
from edgetune.files import unwritable, write_text
from edgetune.report.studies import Heat, study_page
from edgetune.settings.spec import to_plain
from edgetune.workflows.over import Over
from edgetune.workflows.studying import (
    Ablation,
    Moved,
    Movement,
    SharedDirections,
    ablation,
    movement,
    shared_directions,
)

SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Ranks that a table of directions shows, besides the full one."""

html_option = click.option(
    "--html", type=FilePath(), metavar="FILE", help="Also write a page with the tables, shaded."
)


@click.group("study", short_help="See which blocks and directions of an adapter matter.")
def command() -> None:
    """Study trained adapters; nothing is trained."""


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
    _show(f"Blocks of {name}", lead, [heat], html, found, as_json=as_json)


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
    _show(f"Directions of {one} and {other}", lead, heats, html, found, as_json=as_json)


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
    _show(f"Weights of {name}", lead, heats, html, found, as_json=as_json)


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


def _show(
    title: str,
    lead: str,
    heats: Sequence[Heat],
    html: Path | None,
    found: Ablation | SharedDirections | Movement,
    *,
    as_json: bool,
) -> None:
    """Print a study and write its page, if one is wanted."""
    if html is not None:
        try:
            write_text(html, study_page(title, lead, heats))
        except OSError as error:
            raise unwritable("The page", html, error, "choose another place with --html") from error
    if as_json:
        out_json(to_plain(found))
        return
    out(lead)
    for heat in heats:
        rows = [
            (name, *("" if x is None else f"{x:.4g}" for x in row))
            for name, row in zip(heat.rows, heat.values, strict=True)
        ]
        out(f"\n{heat.caption}\n" + table(rows, (heat.corner, *heat.columns)))
    if html is not None:
        out(f"\nThe page is {html}")
