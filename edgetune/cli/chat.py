"""``edgetune chat``: a conversation with a run, an adapter or a model."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgetune.backend import GenerateOptions
from edgetune.cli.chat_view import shown
from edgetune.cli.options import Ref, common_options, over_options, some_knob_options
from edgetune.cli.process import this_process
from edgetune.cli.show import complain, out, out_json_line, say
from edgetune.errors import EdgetuneError, UsageError
from edgetune.workflows.chatting import LONGEST_ANSWER, Chat
from edgetune.workflows.opened import Opened
from edgetune.workflows.over import Over
from edgetune.workflows.references import opened_references

HELP = """/reset      forget what was said
/save FILE  write the chat as rows that can be trained on
/help       show this
/quit       end (as Ctrl-D does)
Ctrl-C stops an answer. Three quotation marks (\"\"\") begin and end a text of several lines."""

QUOTES = '"""'

_LOOK = 0.25
"""Seconds between two looks for signals while a question is typed."""


@click.command("chat", short_help="Chat with a run, an adapter or a model.")
@click.argument("names", type=Ref(), nargs=-1, required=True, metavar="REF...")
@click.option("--system", help="A system message before the chat.")
@click.option("--compare", is_flag=True, help="Let the base model answer too, side by side.")
@over_options
@click.option(
    "--max-tokens",
    type=int,
    help=f"Longest answer. [default: {LONGEST_ANSWER}, or as long as the memory allows]",
)
@some_knob_options("temperature", "top_p", "seed", spec=GenerateOptions)
@common_options
def command(
    names: tuple[str, ...],
    system: str | None,
    compare: bool,
    over: Over,
    as_json: bool,
    **flags: Any,
) -> None:
    """Chat with a REF: a run's folder, an adapter's (over its own base or --model), or a model.

    Several must be over the same base model and answer side by side, each from its own past. /help
    lists the commands; questions can be piped in, one a line.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    with opened_references(names, over) as opened:
        _chat(opened, given, system, compare=compare, as_json=as_json)


def _chat(
    opened: list[Opened],
    given: dict[str, Any],
    system: str | None,
    *,
    compare: bool,
    as_json: bool,
) -> None:
    """Answer until the input ends."""
    for notice in (notice for one in opened for notice in one.notices):
        say(notice)
    if compare:
        if all(one.adapter is None for one in opened):
            raise UsageError("--compare sets an adapter beside its base, and there is no adapter.")
        base = replace(opened[0].base(), name="base")
        opened = [base, *(one for one in opened if one.adapter is not None)]
    longest = given.get("max_tokens")
    chat = Chat.of(opened, GenerateOptions(**given), system=system, longest=longest)
    say(f"Chat with {', '.join(side.label for side in chat.sides)}. /help lists the commands.")
    for line in _lines():
        if line.startswith("/"):
            if not _obeyed(chat, line):
                return
        elif line.strip():
            _answer(chat, line, as_json=as_json)


def _lines() -> Iterator[str]:
    """Yield what the user says, until the end of the input."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401 (editing and history of what is typed)
    while True:
        try:
            line = _next_line(terminal)
        except KeyboardInterrupt:
            if not terminal or this_process().interrupts.ends:
                raise
            continue
        if line is None:
            return
        yield line


def _next_line(terminal: bool) -> str | None:
    """Return what the user says, None at the end of the input.

    Raises:
        KeyboardInterrupt: if the user interrupts, once more while that is answered too.
    """
    try:
        line = _read("> ", terminal)
        if line.lstrip().startswith(QUOTES):
            line = _quoted(line.lstrip().removeprefix(QUOTES), terminal)
    except EOFError:
        if terminal:
            out()
        return None
    except (KeyboardInterrupt, SystemError):  # SystemError: a second signal came in `input`
        interrupts = this_process().interrupts
        if terminal and not interrupts.ends:
            with interrupts.patiently(lambda: None):  # the next Ctrl-C may be here already
                say("\n/quit or Ctrl-D ends the chat.")
        raise KeyboardInterrupt from None
    return line


def _read(prompt: str, terminal: bool) -> str:
    if terminal:
        with _looked_up():
            return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


@contextmanager
def _looked_up() -> Iterator[None]:
    """Have signals answered that come just before the wait for a key.

    CPython's ``input`` looks for them when its wait is interrupted, and not before it begins: a
    timer interrupts it. (Seen in CPython 3.11.)
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _LOOK, _LOOK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _quoted(first: str, terminal: bool) -> str:
    """Return a text of several lines up to the closing quotation marks."""
    lines = [first]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(_read("… ", terminal))
    lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
    return "\n".join(lines).strip("\n")


def _obeyed(chat: Chat, line: str) -> bool:
    """Do what a command says; return whether the chat goes on."""
    name, _, argument = line.strip().partition(" ")
    match name:
        case "/quit" | "/exit" | "/bye":
            return False
        case "/reset":
            chat.reset()
            say("What was said is forgotten.")
        case "/save" if argument.strip():
            _said_why(lambda: chat.save(Path(argument.strip())))
        case "/help":
            say(HELP)
        case _:
            complain(f"{name} is no command here, or lacks its file.\n{HELP}")
    return True


def _said_why(work: Callable[[], None]) -> None:
    """Do some work; an error of it is told, and the chat goes on."""
    try:
        work()
    except EdgetuneError as error:
        complain(f"Error: {error}")


def _answer(chat: Chat, question: str, *, as_json: bool) -> None:
    """Show the answers as they come; Ctrl-C stops them."""
    interrupts = this_process().interrupts
    try:
        with interrupts.patiently(lambda: None) as stop, closing(chat.ask(question)) as pieces:
            labels = [side.label for side in chat.sides]
            texts = shown(_until(stop, pieces), labels, chat.special_texts, quiet=as_json)
        if interrupts.ends or (stop() and not sys.stdin.isatty()):
            raise KeyboardInterrupt
    except EdgetuneError as error:
        complain(f"Error: {error} The question is forgotten; /reset forgets all.")
        return
    except KeyboardInterrupt:
        if interrupts.ends or not sys.stdin.isatty():
            raise
        complain("\nStopped. The question is forgotten.")  # the second one, within the answer
        return
    if as_json:
        for side, text in zip(chat.sides, texts, strict=True):
            out_json_line({"model": side.label, "text": text})


def _until(
    stop: Callable[[], bool], pieces: Iterator[tuple[int, str]]
) -> Iterator[tuple[int, str]]:
    for number, piece in pieces:
        yield number, piece
        if stop():
            return
