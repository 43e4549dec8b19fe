"""The command line: one file a command, imported when it is called."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from io import StringIO, TextIOWrapper
from typing import Any

import click

from edgetune.cli.foreign import ADAPTER_NAMES
from edgetune.cli.process import Process
from edgetune.cli.show import complain
from edgetune.errors import DiskError, EdgetuneError, OutOfMemoryError, StoppedError
from edgetune.files import disk_failed
from edgetune.garbage import rarely_collected
from edgetune.version import __version__
from edgetune.world import MOST_RANKS, RANK, STORE, started_as_rank

COMMANDS = {
    "plan": "edgetune.cli.plan",
    "train": "edgetune.cli.train",
    "eval": "edgetune.cli.evaluate",
    "compare": "edgetune.cli.compare",
    "generate": "edgetune.cli.generate",
    "chat": "edgetune.cli.chat",
    "view": "edgetune.cli.view",
    "serve": "edgetune.cli.serve",
    "export": "edgetune.cli.export",
    "combine": "edgetune.cli.combine",
    "inspect": "edgetune.cli.inspection",
    "similar": "edgetune.cli.similar",
    "study": "edgetune.cli.study",
    "report": "edgetune.cli.report",
    "data": "edgetune.cli.data",
    "devices": "edgetune.cli.devices",
    "models": "edgetune.cli.models",
    "fetch": "edgetune.cli.fetch",
    "doctor": "edgetune.cli.doctor",
}


ELSEWHERE = {
    "pull": "fetch", "download": "fetch", "finetune": "train", "fine-tune": "train", "sft": "train",
    "lora": "train", "tune": "train", "run": "chat", "infer": "generate", "predict": "generate",
    "evaluate": "eval", "fuse": "export", "merge": "export", "convert": "export", "webui": "view",
    "ui": "view", "studio": "view", "list": "models", "ls": "models", "dataset": "data",
    "preprocess": "data", "env": "doctor", "api": "serve", "server": "serve",
}  # fmt: skip
"""What other tools call their commands, and what is the like here."""

SUPERVISED = frozenset({"train", "eval", "generate", "chat", "serve", "export", "combine", "study"})


class LazyGroup(click.Group):
    """A group whose commands are imported on use, so that planning stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        with rarely_collected():
            found: click.Command = import_module(COMMANDS[cmd_name]).command
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, naming the nearest ones if there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message} {_instead(args[0])}", ctx) from None


def _instead(name: str) -> str:
    """Return what to type in place of a command that is not there."""
    from difflib import get_close_matches

    near = [ELSEWHERE[name]] if name in ELSEWHERE else get_close_matches(name, COMMANDS, n=3)
    if not near:
        return "`edgetune --help` lists what there is."
    return f"Did you mean {' or '.join(f'`edgetune {command}`' for command in near)}?"


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
        return _failed(arguments, StoppedError.kind, _stopped(), "Stopped.")
    except click.ClickException as error:
        if _rank():  # rank 0 says the same
            return error.exit_code
        error = _with_our_name(error)
        shown = StringIO()
        error.show(shown)
        complain(shown.getvalue().removesuffix("\n"))
        return _failed(arguments, "usage", error.exit_code, error.format_message())
    except EdgetuneError as error:
        if debug:
            raise
        if (rank := _rank()) and not str(error).startswith(f"Rank {rank}: "):
            return error.exit_code
        kind = "" if isinstance(error, StoppedError) else "Error: "
        complain(f"{kind}{error}")
        return _failed(arguments, error.kind, error.exit_code, str(error))
    except Exception as error:
        if debug:
            raise
        if (known := _explained(error)) is not None:
            with suppress(OSError):  # where standard error is what cannot be written
                complain(f"Error: {known}")
            return _failed(arguments, known.kind, known.exit_code, str(known))
        complain(
            f"Error: {type(error).__name__}: {error}\n"
            "This is a bug of edgetune. Run it again with --debug for the details."
        )
        return _failed(arguments, EdgetuneError.kind, 1, f"{type(error).__name__}: {error}")
    return result if isinstance(result, int) else 0


def _rank() -> int:
    """Return the number of this process among those that `train --nproc` has started; 0 speaks."""
    return int(os.environ.get(RANK, "0")) if STORE in os.environ else 0


def _with_our_name(error: click.ClickException) -> click.ClickException:
    """Return an error that says what an option of other tools is called here, if it is one."""
    if not isinstance(error, click.NoSuchOption) or error.option_name not in ADAPTER_NAMES:
        return error
    said = f"There is no {error.option_name}. {ADAPTER_NAMES[error.option_name]}"
    return click.UsageError(said, error.ctx)


def _explained(error: Exception) -> EdgetuneError | None:
    """Return what a disk that fails and memory that runs out anywhere are told as."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"There is no memory left: {error}. Close other programs.")
    return disk_failed(error) if isinstance(error, OSError) else None


def _failed(arguments: Sequence[str], kind: str, exit_code: int, message: str) -> int:
    """Return the exit code of an error, after printing it as JSON if JSON was asked for."""
    if "--json" in arguments and not _rank():
        error = {"kind": kind, "exit_code": exit_code, "message": message}
        with suppress(OSError):
            click.echo(json.dumps({"error": error}, indent=2))
    return exit_code


def main() -> None:
    """Entry point of the ``edgetune`` program."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # refused where it would become tokens
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run_here(sys.argv[1:])
    except KeyboardInterrupt:  # before a command was there to be stopped
        code = _stopped()
    try:
        if sys.stdout is not None:  # it may have been closed by whoever started the program
            sys.stdout.flush()
    except OSError:  # nothing may be left for the interpreter, which would end with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or DiskError.exit_code
    sys.exit(code)


def _run_here(arguments: Sequence[str]) -> int:
    """Run a command line in this process, or as the parent of one that does."""
    process = Process.here()
    if process.worker is None and _is_supervised(arguments):
        from edgetune.workflows.supervise import supervise

        ranks = _ranks(arguments)
        return _reported(arguments, lambda: supervise(arguments, partial(_tell, arguments), ranks))
    return run(arguments, process)


def _ranks(arguments: Sequence[str]) -> int:
    """Return how many workers `train` asks for; the command refuses what is not a number."""
    if arguments[0] != "train":
        return 1
    given = [
        value
        for name, value in zip(arguments, [*arguments[1:], ""], strict=True)
        if name == "--nproc"
    ]
    given += [name.partition("=")[2] for name in arguments if name.startswith("--nproc=")]
    count = given[-1] if given else "1"
    return int(count) if count.isdecimal() and 1 <= int(count) <= MOST_RANKS else 1


def _stopped() -> int:
    complain("Stopped.")
    return 130


def _is_supervised(arguments: Sequence[str]) -> bool:
    """Tell whether a command runs in a process of its own, because it may take much memory."""
    if not arguments or arguments[0] not in SUPERVISED:
        return False
    from edgetune.workflows.supervise import can_supervise

    return (
        not {"-h", "--help"}.intersection(arguments)
        and can_supervise()
        and not started_as_rank(os.environ)  # whoever starts ranks also looks after them
    )


def _tell(arguments: Sequence[str], text: str) -> None:
    """Show what happened to a worker."""
    if not {"-q", "--quiet"}.intersection(arguments):
        complain(f"\n{text}" if sys.stderr.isatty() else text)
