"""Every command and every flag explains itself; the golden files hold the texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgetune import __version__
from edgetune.cli import COMMANDS, group
from edgetune.workflows.settings import knob_specs


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from commands(found(command, name), (*path, name))


def found(above: click.Group, name: str) -> click.Command:
    command = above.get_command(click.Context(above), name)
    assert command is not None
    return command


def at(path: tuple[str, ...]) -> click.Command:
    command: click.Command = group
    for name in path:
        assert isinstance(command, click.Group)
        command = found(command, name)
    return command


ALL = list(commands(group))
LEAVES = [path for path in ALL if not isinstance(at(path), click.Group)]


def test_all_commands_are_seen() -> None:
    assert {path[0] for path in ALL if path} == COMMANDS.keys()
    assert len(LEAVES) >= len(COMMANDS)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_is_printed_for(path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        result = CliRunner().invoke(group, [*path, flag], prog_name="edgetune")
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: {' '.join(['edgetune', *path])} ")
        assert result.stderr == ""


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_flag_is_explained(path: tuple[str, ...]) -> None:
    options = [item for item in at(path).params if isinstance(item, click.Option)]
    assert [option.opts[0] for option in options if not option.help] == []


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_has_the_common_flags(path: tuple[str, ...]) -> None:
    flags = {flag for item in at(path).params for flag in item.opts}
    assert {"--json", "-q", "--quiet", "-v", "--verbose", "--debug"} <= flags


@pytest.mark.parametrize("name", ["plan", "train"])
def test_every_setting_is_a_flag_of(name: str) -> None:
    flags = {flag for item in at((name,)).params for flag in item.opts}
    assert {item.flag for item in knob_specs()} <= flags


GOLDEN = sorted((Path(__file__).parents[1] / "golden").rglob("*.txt"))
STIFF = re.compile(
    r"so that nothing|at the most|may be used|\bgo on\b|goes on(?!line)|gone on|all the same|for who\b"
)


def test_help_and_plans_have_no_stiff_phrases() -> None:
    assert len(GOLDEN) > 50
    stiff = [
        (file.name, found[0])
        for file in GOLDEN
        if (found := STIFF.search(" ".join(file.read_text("utf-8").split())))
    ]
    assert stiff == []


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(group, ["--version"], prog_name="edgetune")
    assert result.stdout == f"edgetune, version {__version__}\n"
