"""``edgetune combine``: one adapter made of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.cli.options import FilePath, Ref, common_options, over_options
from edgetune.cli.show import out, out_json, say, table
from edgetune.combining import HOW
from edgetune.settings.spec import to_plain
from edgetune.workflows.combining import EVALUATIONS, Combination, CombineRequest, combine
from edgetune.workflows.over import Over


class Numbers(click.ParamType["tuple[float, ...]"]):
    """Numbers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas.", param, ctx)


@click.command("combine", short_help="Combine several adapters over one base into one.")
@click.argument("names", type=Ref(), nargs=-1, required=True, metavar="REF...")
@click.option("--output", type=FilePath(), required=True, help="A new folder.")
@click.option("--how", type=click.Choice(HOW), default="cat", help="See below. [default: cat]")
@click.option(
    "--weights",
    type=Numbers(),
    metavar="W,...",
    help="One for each REF; negative ones subtract. [default: 1/n each; 1 for ties, dare_ties, "
    "task-arithmetic]",
)
@click.option(
    "--density", type=float, help="Share of numbers that ties and dare keep. [default: 0.5]"
)
@click.option(
    "--rank", type=int, help="Rank of the result of svd. [default: the largest of the REFs]"
)
@click.option("--seed", type=int, help="Seed of what dare drops. [default: 0]")
@click.option("--data", type=FilePath(), metavar="FILE", help="A few rows, for lorahub.")
@click.option(
    "--evaluations",
    type=int,
    help=f"Most sets of weights that lorahub tries. [default: {EVALUATIONS}]",
)
@over_options
@common_options
def command(as_json: bool, over: Over, names: tuple[str, ...], output: Path, **flags: Any) -> None:
    """Write one LoRA adapter made of several, in PEFT's layout, to a new folder.

    A REF is a run's folder or an adapter's; all must be LoRA or VeRA over the same base model. cat and
    task-arithmetic write the exact weighted sum of their updates, at the sum of their ranks; svd
    writes its best approximation at a chosen rank. linear, ties, dare_ties and dare_linear add A
    and B number by number; ties and dare keep only some numbers. lorahub finds the weights on the
    rows of --data.
    """
    result = combine(CombineRequest(names=names, output=output, over=over, **flags))
    for notice in result.notices:
        say(notice)
    if as_json:
        out_json({**to_plain(result), "folder": str(result.folder)})
        return
    out(_weights(result))
    if (search := result.search) is not None:
        out(
            f"Loss {search.loss:.4f} on {search.rows} rows after {search.evaluations} of at most "
            f"{search.limit} evaluations; without an adapter {search.base_loss:.4f}"
        )
    out(f"Written to {result.folder}: LoRA of rank {result.rank}, {result.parameters:,} parameters")


def _weights(result: Combination) -> str:
    """Return a table of the adapters and their weights."""
    rows = [
        [name, f"{weight:.4g}"] for name, weight in zip(result.names, result.weights, strict=True)
    ]
    if result.search is None:
        return table(rows, (result.how, "weight"))
    for row, loss in zip(rows, result.search.single_losses, strict=True):
        row.append(f"{loss:.4f}")
    return table(rows, (result.how, "weight", "loss alone"))
