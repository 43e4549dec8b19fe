"""``edgetune eval``: how well runs and adapters predict rows, beside their base model."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.cli.options import FilePath, Ref, common_options, over_options
from edgetune.cli.show import VERBOSE, out, out_json, say, table
from edgetune.settings.spec import to_plain
from edgetune.workflows.inference import Scores, rows_of, score
from edgetune.workflows.over import Over
from edgetune.workflows.references import open_references

_BASE = "base"


@click.command("eval", short_help="Score runs or adapters on rows, beside their base model.")
@click.argument("names", type=Ref(), nargs=-1, required=True, metavar="REF...")
@click.option(
    "--data",
    type=FilePath(),
    required=True,
    metavar="FILE",
    help="The rows to score on: a file or a folder of files.",
)
@click.option(
    "--exact-match", is_flag=True, help="Also let both models answer, and compare to the letter."
)
@over_options
@common_options
def command(
    names: tuple[str, ...], data: Path, exact_match: bool, over: Over, as_json: bool
) -> None:
    """Print loss, perplexity and token accuracy of each REF on all rows of a file.

    A REF is a run's folder, an adapter's (over its own base or --model), or a model. The base
    model without the adapter is scored on the same rows, so that the gain is seen. It is loaded
    once for all, which must be over the same one; rows are read as the first REF reads them.
    """
    opened = open_references(names, over)
    for one in opened:
        say(f"Opened {one.model.folder} for {one.name}", level=VERBOSE)
        for notice in one.notices:
            say(notice)
    rows = rows_of(opened[0], data)
    tuned = [one for one in opened if one.adapter is not None]
    called = ["tuned"] if len(tuned) == 1 else [_name(one.name) for one in tuned]
    each = {_BASE: opened[0].base(), **dict(zip(called, tuned, strict=True))}
    scores = {name: score(one, rows, exact_match=exact_match) for name, one in each.items()}
    if as_json:
        out_json(to_plain(scores))
        return
    header = ("", "loss", "perplexity", "token accuracy", "exact match")
    cut = 5 if exact_match else 4
    out(table([_row(name, found)[:cut] for name, found in scores.items()], header[:cut]))


def _name(name: str) -> str:
    """Return what a run is called beside the base model."""
    return name if name != _BASE else f"./{name}"


def _row(name: str, scores: Scores) -> tuple[str, ...]:
    exact = "" if scores.exact_match is None else f"{scores.exact_match:.1%}"
    accuracy = f"{scores.accuracy:.1%}"
    return name, f"{scores.loss:.4f}", f"{scores.perplexity:.2f}", accuracy, exact
