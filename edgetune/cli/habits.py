"""Command lines as other tools have them: names of the same meaning are taken, others explained."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import click

from edgetune.cli.foreign import MORE, REFUSED, SAME, SWITCHES, VALUES
from edgetune.cli.show import say

_YES, _NO = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0"})
HINTS = "edgetune.hints"
"""Where what a config calls by foreign names is kept until all flags are read."""


class HabitCommand(click.Command):
    """A command that understands the names that other tools have for its settings."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line after putting our names in it, and say which they are."""
        translated = list(_translated(args, _flags(self.get_params(ctx))))
        words = [word for some, _ in translated for word in some]
        try:
            rest = super().parse_args(ctx, words)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            raise click.UsageError(
                f"{error.message}. {_instead_of_words(ctx, error.message)}", ctx
            ) from None
        hints = [*(hint for _, hint in translated if hint), *ctx.meta.get(HINTS, ())]
        if hints:
            with ctx:
                say(f"Understood: {'; '.join(hints)}.")
        return rest


def _flags(parameters: Iterable[click.Parameter]) -> dict[str, bool]:
    """Return the flags of a command, each with whether a value follows it."""
    return {
        name: isinstance(parameter, click.Option) and not parameter.is_flag
        for parameter in parameters
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def _instead_of_words(ctx: click.Context, message: str) -> str:
    """Return what to type in place of words that are no flags."""
    if config := re.search(r"[^\s()]+\.ya?ml\b", message):
        return f"A config is --config {config[0]}."
    return f"`edgetune {ctx.command.name}` takes flags alone: --model REF --data FILE."


def known_as(name: str, value: Any, own: Container[str]) -> tuple[str, Any, str | None] | None:
    """Return our name and value for a setting, with a hint where they differ; None: nothing to set.

    Raises:
        click.UsageError: if the name has another meaning or none here, saying what to do.
    """
    plain = name.replace("_", "-")
    if f"--{plain}" in own:
        return plain, value, None if plain == name else f"--{name} is --{plain}"
    if plain in SWITCHES:
        ours, stands_for = SWITCHES[plain]
        if str(value).lower() in _NO:
            return None
        return ours, stands_for, f"--{name} is --{ours} {stands_for}"
    if plain in SAME and f"--{SAME[plain]}" in own:
        ours = SAME[plain]
        more = f" ({MORE[ours]})" if ours in MORE else ""
        return ours, VALUES.get(ours, {}).get(str(value), value), f"--{name} is --{ours}{more}"
    if plain in REFUSED:
        raise click.UsageError(f"There is no --{name}. {REFUSED[plain]}")
    return name, value, None


def _translated(args: list[str], own: Mapping[str, bool]) -> Iterator[tuple[list[str], str | None]]:
    """Yield the words of a command line with our names, each with a hint if it was another."""
    words = iter(range(len(args)))
    for place in words:
        word = args[place]
        name, given, value = word.removeprefix("--").partition("=")
        foreign = word.startswith("--") and len(word) > 2 and f"--{name}" not in own
        following = args[place + 1] if place + 1 < len(args) else ""
        if word == "--":
            yield args[place:], None
            return
        if not foreign or name.startswith("no-"):
            has_value = own.get(word, False) and place + 1 < len(args)
            yield ([word, args[next(words)]] if has_value else [word]), None
            continue
        if name.replace("_", "-") in SWITCHES:
            if not given and following.lower() in _YES | _NO:
                value = args[next(words)]
            found = known_as(name, value, own)
            yield ([], None) if found is None else ([f"--{found[0]}", found[1]], found[2])
            continue
        found = known_as(name, value if given else following, own)
        assert found is not None
        ours, known, hint = found
        if given:
            yield [f"--{ours}={known}"], hint
        elif following and known != following:  # a value that has another name here, too
            next(words)
            yield [f"--{ours}", str(known)], hint
        else:
            yield [f"--{ours}"], hint
