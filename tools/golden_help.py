"""The `--help` of every command, as 80 columns show it; written by `update_golden.py`."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.testing import CliRunner

from edgetune.cli import group


def golden_help() -> Iterator[tuple[str, str]]:
    """Yield name and text of every golden help."""
    yield from _below(group, ())


def _below(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    yield f"{'-'.join(path) or 'edgetune'}.txt", _help(path)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _below(found, (*path, name))


def _help(path: tuple[str, ...]) -> str:
    runner = CliRunner()
    result = runner.invoke(group, [*path, "--help"], prog_name="edgetune", terminal_width=80)
    assert result.exit_code == 0, result.output
    return result.output
