"""Answers as they come: one as plain text, several side by side."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from edgetune.cli.show import out, stream
from edgetune.escapes import plain, without

if TYPE_CHECKING:
    from rich.table import Table

REDRAWS: int = 10
"""Times a second that columns are drawn anew."""


def shown(
    pieces: Iterator[tuple[int, str]],
    labels: Sequence[str],
    special: Collection[str] = (),
    *,
    quiet: bool = False,
) -> list[str]:
    """Show the pieces of answers as they come and return the whole ones.

    What is shown is without the ``special`` texts, which are those of tokens and so never split.

    One answer is streamed. Several stand in columns on a terminal, elsewhere under their labels
    when they are whole. ``quiet`` shows nothing.
    """
    texts = [""] * len(labels)
    if quiet:
        _gather(pieces, texts)
    elif len(labels) == 1:
        stream(without(piece, special) for _, piece in _gathered(pieces, texts))
    elif sys.stdout.isatty():
        _in_columns(pieces, labels, texts, special)
    else:
        _gather(pieces, texts)
        for label, text in zip(labels, texts, strict=True):
            out(f"{label}: {without(text, special)}")
    return texts


def _gathered(pieces: Iterator[tuple[int, str]], texts: list[str]) -> Iterator[tuple[int, str]]:
    for number, piece in pieces:
        texts[number] += piece
        yield number, piece


def _gather(pieces: Iterator[tuple[int, str]], texts: list[str]) -> None:
    for number, piece in pieces:
        texts[number] += piece


def _in_columns(
    pieces: Iterator[tuple[int, str]],
    labels: Sequence[str],
    texts: list[str],
    special: Collection[str],
) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    view = Live(console=console, refresh_per_second=REDRAWS, vertical_overflow="crop")
    with view:
        for _ in _gathered(pieces, texts):
            view.update(_columns(labels, [without(text, special) for text in texts]))
        view.vertical_overflow = "visible"
        view.update(_columns(labels, [without(text, special) for text in texts]))


def _columns(labels: Sequence[str], texts: Sequence[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
    for label in labels:
        table.add_column(Text(plain(label), overflow="fold"), ratio=1, overflow="fold")
    table.add_row(*(Text(plain(text)) for text in texts))
    return table
