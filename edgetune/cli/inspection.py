"""``edgetune inspect``: what an adapter learned, seen from its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

import click

from edgetune.cli.options import Ref, common_options, over_options
from edgetune.cli.show import out, out_json, say, table
from edgetune.escapes import short
from edgetune.settings.spec import to_plain
from edgetune.workflows.inspecting import Inspection, SeenUpdate, inspect_adapter
from edgetune.workflows.over import Over


@click.command("inspect", short_help="See what an adapter learned, from its numbers.")
@click.argument("name", type=Ref(), metavar="REF")
@click.option(
    "--words",
    type=click.IntRange(min=1, max=50),
    default=3,
    metavar="N",
    help="Nearest tokens to print for each row of a prompt. [default: 3]",
)
@over_options
@common_options
def command(name: str, words: int, over: Over, as_json: bool) -> None:
    """Print what the adapter of REF learned.

    For LoRA and its kin: norm and singular values of each update, by block and target; for a
    prompt: the nearest words of each row; for other methods: the norms of their tensors. REF is a
    run's folder or an adapter's. Only files are read; the model is not run.
    """
    found = inspect_adapter(name, over, words)
    for notice in found.notices:
        say(notice)
    if as_json:
        out_json(to_plain(found))
        return
    for text in _tables(found):
        out(text)


def _tables(found: Inspection) -> Iterator[str]:
    """Yield what there is to say."""
    if found.updates:
        yield _by_target(found.updates)
        yield "\n" + _by_block(found.updates)
    if found.prompt:
        rows = [
            (
                str(place),
                f"{row.norm:.3g}",
                ", ".join(f"{short(word.text)} {word.cosine:.2f}" for word in row.nearest),
            )
            for place, row in enumerate(found.prompt)
        ]
        yield table(rows, ("row", "norm", "nearest tokens, by cosine"))
    if found.tensors:
        rows = [(x.name, "x".join(map(str, x.shape)), f"{x.norm:.4g}") for x in found.tensors]
        yield table(rows, (found.method, "shape", "norm"))


def _by_target(updates: Sequence[SeenUpdate]) -> str:
    """Return the targets: how large their updates are and how their singular values fall."""
    rows = []
    for target in dict.fromkeys(x.target for x in updates):
        own = [x for x in updates if x.target == target]
        largest = max(own, key=lambda x: x.norm)
        shown = " ".join(f"{value:.3g}" for value in largest.values[:4])
        rows.append(
            (
                target,
                f"{sqrt(sum(x.norm**2 for x in own)):.4g}",
                f"{sum(x.effective_rank for x in own) / len(own):.1f} of {len(largest.values)}",
                f"block {largest.layer}: {shown}",
            )
        )
    return table(rows, ("update", "norm", "effective rank", "largest singular values"))


def _by_block(updates: Sequence[SeenUpdate]) -> str:
    """Return the norm of all updates of each block, with a bar."""
    squares = dict.fromkeys(sorted({x.layer for x in updates}), 0.0)
    for x in updates:
        squares[x.layer] += x.norm**2
    most = sqrt(max(squares.values())) or 1.0
    rows = [
        (f"block {layer}", f"{sqrt(square):.4g}", ("#" * round(40 * sqrt(square) / most)).ljust(40))
        for layer, square in squares.items()
    ]
    return table(rows, ("", "norm", ""))
