"""``edgetune eval``: how well runs predict rows, beside their base model."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.cli.options import FilePath, common_options
from edgetune.cli.show import VERBOSE, out, out_json, say, table
from edgetune.settings.spec import to_plain
from edgetune.workflows.inference import Scores, open_runs, rows_of, score

_BASE = "base"


@click.command("eval", short_help="Score runs on rows, beside their base model.")
@click.argument("runs", type=FilePath(), nargs=-1, required=True, metavar="RUN...")
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
@common_options
def command(runs: tuple[Path, ...], data: Path, exact_match: bool, as_json: bool) -> None:
    """Print loss, perplexity and token accuracy of each RUN on all rows of a file.

    The base model without the adapter is scored on the same rows, so that the gain is seen. It
    is loaded once for all runs, which must be over the same one; rows are read as the first RUN
    reads them.
    """
    opened = open_runs(runs)
    for run in opened:
        say(f"Opened {run.model.folder} with {run.folder.adapter}", level=VERBOSE)
    rows = rows_of(opened[0], data)
    names = ["tuned"] if len(runs) == 1 else [_name(path) for path in runs]
    each = {_BASE: opened[0].base(), **dict(zip(names, opened, strict=True))}
    scores = {name: score(run, rows, exact_match=exact_match) for name, run in each.items()}
    if as_json:
        out_json(to_plain(scores))
        return
    header = ("", "loss", "perplexity", "token accuracy", "exact match")
    cut = 5 if exact_match else 4
    out(table([_row(name, found)[:cut] for name, found in scores.items()], header[:cut]))


def _name(path: Path) -> str:
    """Return what a run is called beside the base model."""
    return str(path) if str(path) != _BASE else f"./{path}"


def _row(name: str, scores: Scores) -> tuple[str, ...]:
    exact = "" if scores.exact_match is None else f"{scores.exact_match:.1%}"
    accuracy = f"{scores.accuracy:.1%}"
    return name, f"{scores.loss:.4f}", f"{scores.perplexity:.2f}", accuracy, exact
