"""How results look on a terminal: plain text of at most 80 columns, colour only where allowed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import click

from edgetune.escapes import plain

QUIET, NORMAL, VERBOSE = 0, 1, 2
_LEVEL = "edgetune.verbosity"


class _Screen:
    """What has to step aside for a line that is printed."""

    above: Callable[[], AbstractContextManager[None]] = nullcontext


_SCREEN = _Screen()


def out(text: str = "") -> None:
    """Print a line of a result."""
    click.echo(plain(text))


def stream(parts: Iterable[str]) -> None:
    """Print a result as it comes, and end its line."""
    for part in parts:
        sys.stdout.write(plain(part))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def say(text: str, *, level: int = NORMAL) -> None:
    """Print a line about the progress, if the user wants to hear as much."""
    if verbosity() >= level:
        complain(text)


def complain(text: str) -> None:
    """Print an error, whatever the user wants to hear.

    That nobody reads it any more, on a closed terminal or pipe, is no reason to stop.
    """
    with suppress(OSError), _SCREEN.above():
        click.echo(plain(text), err=True)


def above(make_room: Callable[[], AbstractContextManager[None]] | None) -> None:
    """Make room for each line while it is printed; None: there is nothing in its way."""
    _SCREEN.above = make_room or nullcontext


def draw(text: str) -> None:
    """Write a part of a line about the progress, as it is."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def verbosity() -> int:
    """Return how much the user of this command wants to hear."""
    level: int = click.get_current_context().meta.get(_LEVEL, NORMAL)
    return level


def set_verbosity(context: click.Context, level: int) -> None:
    """Remember how much the user of this command wants to hear."""
    context.meta[_LEVEL] = level


def out_json(value: Any) -> None:
    """Print a result as JSON."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def out_json_line(value: Any) -> None:
    """Print one of several results as a line of JSON."""
    click.echo(json.dumps(value, allow_nan=False))
    sys.stdout.flush()


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> str:
    """Return rows in columns, the first flush left and the others flush right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
