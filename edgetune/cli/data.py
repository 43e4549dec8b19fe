"""``edgetune data check``: the receipt, and what is trained in which row."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgetune.cli.options import FilePath, Model, Names, common_options, some_knob_options
from edgetune.cli.reading import reading_bar
from edgetune.cli.show import out, out_json, say
from edgetune.data import ShownRow, review, show_rows
from edgetune.errors import UsageError
from edgetune.escapes import plain
from edgetune.model import resolve
from edgetune.planning.sharing import sharing_for
from edgetune.settings.spec import Training, values
from edgetune.workflows.planning import read_rows


class _Group(click.Group):
    """What can be done with a file; a file alone is answered with that."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            said = f"{error.message} Look at a file with `edgetune data check FILE`."
            raise click.UsageError(said, ctx) from None


@click.group("data", cls=_Group, short_help="Look at a file of examples.")
def command() -> None:
    """Look at a file of examples before training on it."""


@command.command("check")
@click.argument("file", type=FilePath())
@click.option(
    "--model",
    type=Model(),
    default="tiny",
    show_default=True,
    metavar="REF",
    help="Whose tokenizer and template.",
)
@click.option("--context", type=click.IntRange(min=2), help="Apply --long-rows at this context.")
@click.option("--rows", type=click.IntRange(min=0), help="How many rows to show. [default: 2]")
@click.option(
    "--show", type=Names(), metavar="LINE,…", help="Rows to show, such as 12 or chats.jsonl:12."
)
@click.option(
    "--pii", is_flag=True, help="List personal data and keys found by patterns; no guarantee."
)
@click.option("--color/--no-color", default=None, help="Colour what is trained, or [bracket] it.")
@some_knob_options(
    "objective",
    "loss_on",
    "long_rows",
    "validation",
    "validation_data",
    "fields",
    "label_names",
    "seed",
)
@common_options
def check(
    file: Path,
    model: str,
    context: int | None,
    rows: int | None,
    show: tuple[str, ...] | None,
    pii: bool,
    color: bool | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Print what becomes of every row of FILE, and show what is trained in some of them."""
    if settings["long_rows"] is not None and context is None:
        raise UsageError("--long-rows is a rule for a context. Give --context too.")
    training = Training(**{name: value for name, value in settings.items() if value is not None})
    source = resolve(model)
    if source.taken_as is not None:
        say(source.taken_as)
    sharing = sharing_for(source.shape, {}, values(training))
    if sharing is not None:
        training = replace(training, share_prompts=sharing.value)
    with reading_bar() as report:
        tokenizer, dataset = read_rows(source, file, training, report)
    if context is not None:
        dataset = dataset.fit(context)
    first = rows if rows is not None else 0 if show or as_json else 2
    shown = show_rows(dataset, tokenizer, first=first, locations=show or ())
    found = review(dataset, tokenizer, pii=pii)
    if found is None and pii:
        raise UsageError("--pii looks at 100,000 rows at most. Check parts of the file.")
    if as_json:
        reviewed = {"review": found.to_json()} if found else {}
        out_json({**dataset.receipt.to_json(), **reviewed, **_as_json(shown)})
        return
    out("\n".join([*dataset.receipt.lines(), *(found.lines() if found else ())]))
    in_color = _may_color() if color is None else color
    for row in shown:
        _print_row(row, in_color)


def _as_json(shown: list[ShownRow]) -> dict[str, Any]:
    rows = [
        {
            "place": row.place,
            "side": row.side,
            "because": row.because,
            "tokens": row.tokens,
            "learned": row.learned,
            "answer": row.answer,
            "pieces": [{"text": text, "learned": learned} for text, learned in row.pieces],
        }
        for row in shown
    ]
    return {"rows": rows} if rows else {}


def _may_color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _print_row(row: ShownRow, in_color: bool) -> None:
    if row.because is not None:
        out(f"\n{row.place}, {row.side}: {row.because}")
        return
    text = "".join(_piece(plain(text), learned, in_color) for text, learned in row.pieces)
    marks = "in colour" if in_color else "in [brackets]"
    side = row.side if row.answer is None else f"{row.side}, {row.answer}"
    click.echo(
        f"\n{plain(row.place)}, {side} ({row.tokens:,} tokens, {row.learned:,} learned: text {marks})\n{text}",
        color=in_color,
    )


def _piece(text: str, learned: bool, in_color: bool) -> str:
    if in_color:
        return click.style(text, fg="green") if learned else click.style(text, dim=True)
    return f"[{text}]" if learned else text
