"""Command lines as other tools have them: names of the same meaning are taken, others explained."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

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
        flags = _flags(self.get_params(ctx))
        translated = list(_translated(args, flags))
        _refuse_contradictions(ctx, translated, flags)
        words = [word for one in translated for word in one.words]
        try:
            rest = super().parse_args(ctx, words)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            raise click.UsageError(
                f"{error.message}. {_instead_of_words(ctx, error.message)}", ctx
            ) from None
        hints = [*(one.hint for one in translated if one.hint), *ctx.meta.get(HINTS, ())]
        if hints:
            with ctx:
                say(f"Understood: {'; '.join(hints)}.")
        return rest


class Read(NamedTuple):
    """Words of a command line with our names, and a hint if they were others.

    Where they give a setting that takes a value: its flag here, what was typed, and the value.
    """

    words: list[str]
    hint: str | None = None
    flag: str = ""
    typed: str = ""
    value: str = ""


def _flags(parameters: Iterable[click.Parameter]) -> dict[str, click.Parameter]:
    """Return the flags of a command."""
    return {
        name: parameter
        for parameter in parameters
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def _has_value(parameter: click.Parameter | None) -> bool:
    return isinstance(parameter, click.Option) and not parameter.is_flag


def _refuse_contradictions(
    ctx: click.Context, read: Iterable[Read], flags: Mapping[str, click.Parameter]
) -> None:
    """Refuse a setting that has two values under two names; of one name the last value counts.

    Raises:
        click.UsageError: naming both.
    """
    said: dict[str, dict[str, Read]] = {}
    for one in read:
        if _has_value(flags.get(one.flag)):
            said.setdefault(one.flag, {})[one.typed] = one
    for flag, names in said.items():
        parameter, (first, *others) = flags[flag], names.values()
        for other in others:
            ours, theirs = (parameter.type.convert(x.value, parameter, ctx) for x in (first, other))
            if ours != theirs:
                raise click.UsageError(
                    f"{first.typed} and {other.typed} are one setting, {flag}, which cannot be both "
                    f"{first.value} and {other.value}. Give one of them.",
                    ctx,
                )


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


def _translated(args: list[str], own: Mapping[str, click.Parameter]) -> Iterator[Read]:
    """Yield the words of a command line with our names."""
    words = iter(range(len(args)))
    for place in words:
        word = args[place]
        typed, given, value = word.partition("=")
        name = typed.removeprefix("--")
        foreign = word.startswith("--") and len(word) > 2 and typed not in own
        following = args[place + 1] if place + 1 < len(args) else ""
        if word == "--":
            yield Read(args[place:])
            return
        if not foreign or name.startswith("no-"):
            if _has_value(own.get(word)) and place + 1 < len(args):
                yield Read([word, args[next(words)]], None, word, word, following)
            else:
                yield Read([word], None, typed if given else "", typed, value)
            continue
        if name.replace("_", "-") in SWITCHES:
            if not given and following.lower() in _YES | _NO:
                value = args[next(words)]
            found = known_as(name, value, own)
            if found is not None:
                ours, stands_for, hint = found
                yield Read([f"--{ours}", stands_for], hint, f"--{ours}", typed, stands_for)
            continue
        found = known_as(name, value if given else following, own)
        assert found is not None
        ours, known, hint = found
        flag = f"--{ours}"
        if given:
            yield Read([f"{flag}={known}"], hint, flag, typed, str(known))
        elif following and known != following:  # a value that has another name here, too
            next(words)
            yield Read([flag, str(known)], hint, flag, typed, str(known))
        elif following and _has_value(own.get(flag)):
            next(words)
            yield Read([flag, following], hint, flag, typed, following)
        else:
            yield Read([flag], hint)
