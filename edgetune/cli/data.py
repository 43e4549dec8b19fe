"""``edgetune data check``: the receipt, and what is trained in which row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.agent.planning import read_rows
from edgetune.cli.options import common_options
from edgetune.cli.show import out, out_json
from edgetune.data import view_row
from edgetune.model import resolve
from edgetune.spec import Training


@click.group("data", short_help="Look at a file of examples.")
def command() -> None:
    """Look at a file of examples before training on it."""


@command.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", default="tiny", show_default=True, metavar="REF")
@click.option("--loss-on", type=click.Choice(["assistant", "completion", "all"]))
@click.option("--context", type=click.IntRange(min=2), help="Apply the length rule for it.")
@click.option("--rows", default=2, show_default=True, help="Rows to show.")
@common_options
def check(
    file: Path,
    model: str,
    loss_on: Any,
    context: int | None,
    rows: int,
    as_json: bool,
) -> None:
    """Print what becomes of every row of FILE, and show what is trained in the first ones."""
    training = Training(loss_on=loss_on or "assistant")
    tokenizer, dataset = read_rows(resolve(model), file, training)
    if context is not None:
        dataset = dataset.fit(context)
    if as_json:
        out_json(dataset.receipt.to_json())
        return
    out("\n".join(dataset.receipt.lines()))
    for index in range(min(rows, len(dataset.train))):
        out(f"\n{dataset.train.places[index]} (trained tokens in [brackets])")
        tokens, mask = dataset.train[index]
        spans = view_row((tokens.tolist(), mask.tolist()), tokenizer)
        out("".join(_span(text, trained) for text, trained in spans))


def _span(text: str, trained: bool) -> str:
    return click.style(f"[{text}]", fg="green") if trained else text
