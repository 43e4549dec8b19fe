"""The command line: one file a command, imported when it is called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from io import StringIO, TextIOWrapper
from typing import Any

import click

from edgetune import __version__
from edgetune.cli.process import Process
from edgetune.cli.show import complain
from edgetune.errors import EdgetuneError, StoppedError
from edgetune.workflows.supervise import can_supervise, supervise

COMMANDS = {
    "plan": "edgetune.cli.plan",
    "train": "edgetune.cli.train",
    "eval": "edgetune.cli.evaluate",
    "generate": "edgetune.cli.generate",
    "export": "edgetune.cli.export",
    "data": "edgetune.cli.data",
    "devices": "edgetune.cli.devices",
    "models": "edgetune.cli.models",
}


SUPERVISED = frozenset({"train", "eval", "generate", "export"})


class LazyGroup(click.Group):
    """A group whose commands are imported on use, so that planning stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(COMMANDS[cmd_name]).command
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, naming the nearest ones if there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = ", ".join(COMMANDS)
            raise click.UsageError(f"{error.message} There are: {known}.", ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="edgetune")
def group() -> None:
    """Fine-tune an open language model on the machine you own.

    \b
    edgetune plan  --model tiny --data examples/home_commands.jsonl
    edgetune train --model tiny --data examples/home_commands.jsonl --output runs/home
    edgetune generate runs/home -p "Please turn on the lamp in the kitchen."
    edgetune export runs/home --to hf --output home-model
    """


def run(arguments: Sequence[str], process: Process | None = None) -> int:
    """Run a command line and return its exit code; a message, not a traceback, on errors."""

    def command() -> object:
        return group.main(list(arguments), prog_name="edgetune", standalone_mode=False, obj=process)

    return _reported(arguments, command)


def _reported(arguments: Sequence[str], command: Callable[[], object]) -> int:
    """Return the exit code of a command, after telling its error."""
    debug = "--debug" in arguments
    try:
        result = command()
    except click.exceptions.Abort:
        complain("Stopped.")
        return 130
    except click.ClickException as error:
        shown = StringIO()
        error.show(shown)
        complain(shown.getvalue().removesuffix("\n"))
        return _failed(arguments, "usage", error.exit_code, error.format_message())
    except EdgetuneError as error:
        if debug:
            raise
        kind = "" if isinstance(error, StoppedError) else "Error: "
        complain(f"{kind}{error}")
        return _failed(arguments, error.kind, error.exit_code, str(error))
    except Exception as error:
        if debug:
            raise
        complain(
            f"Error: {type(error).__name__}: {error}\n"
            "This is a bug of edgetune. Run it again with --debug for the details."
        )
        return _failed(arguments, EdgetuneError.kind, 1, f"{type(error).__name__}: {error}")
    return result if isinstance(result, int) else 0


def _failed(arguments: Sequence[str], kind: str, exit_code: int, message: str) -> int:
    """Return the exit code of an error, after printing it as JSON if JSON was asked for."""
    if "--json" in arguments:
        error = {"kind": kind, "exit_code": exit_code, "message": message}
        click.echo(json.dumps({"error": error}, indent=2))
    return exit_code


def main() -> None:
    """Entry point of the ``edgetune`` program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    process = Process.here()
    if process.worker is None and _is_supervised(arguments):
        sys.exit(_reported(arguments, lambda: supervise(arguments, partial(_tell, arguments))))
    sys.exit(run(arguments, process))


def _is_supervised(arguments: Sequence[str]) -> bool:
    """Tell whether a command runs in a process of its own, because it may take much memory."""
    return (
        bool(arguments)
        and arguments[0] in SUPERVISED
        and not {"-h", "--help"}.intersection(arguments)
        and can_supervise()
    )


def _tell(arguments: Sequence[str], text: str) -> None:
    """Show what happened to a worker."""
    if not {"-q", "--quiet"}.intersection(arguments):
        complain(f"\n{text}" if sys.stderr.isatty() else text)
