"""The form of a new run: its fields, what they hold, and which of them an error speaks of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from edgetune.errors import UsageError
from edgetune.methods import METHODS, Method
from edgetune.page.asked import Asked
from edgetune.page.offers import holds_rows
from edgetune.settings.spec import Checkpointing, Knob
from edgetune.workflows.settings import knob_specs, parse_checkpointing, parse_names, plain_type

FIRST: Final = ("method", "rank", "context", "learning_rate", "epochs", "steps")
"""Settings that stand open; the others are behind a heading."""

Kind = Literal["text", "number", "choice", "switch"]

_BY_ERROR: Final = {
    "data": "data", "model": "model", "nothing-fits": "memory", "out-of-memory": "memory",
}  # fmt: skip
_FLAG: Final = re.compile(r"--(?:no-)?([a-z][a-z0-9-]*)")
_PROBLEMS: Final = re.compile(r"(?<=\.) (?=--)")
"""Between the sentences of an error that each begin with a flag."""
_WHERE: Final = {"model": "model", "data": "data", "memory": "memory", "device": "device",
                 "output": "name", "from": "from"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A setting as a field of the form."""

    name: str
    label: str
    help: str
    kind: Kind
    choices: tuple[str, ...] = ()
    default: str = ""
    """What holds if it is left empty, if that does not depend on the plan."""


@cache
def fields() -> tuple[Field, ...]:
    """Return a field for every setting of a run, those of :data:`FIRST` first."""
    known = {item.name: item for item in knob_specs()}
    names = [*FIRST, *(name for name in known if name not in FIRST)]
    return tuple(_field(known[name]) for name in names)


def filled(asked: Asked) -> dict[str, Any]:
    """Return the settings that were filled in, by name, with their types.

    Raises:
        UsageError: naming the flag of every value of another type.
    """
    found, problems = {}, []
    for item in knob_specs():
        if text := asked.one(item.name, ""):
            try:
                found[item.name] = _value(item, text)
            except (UsageError, ValueError) as error:
                problems.append(f"{item.flag}: {str(error).rstrip('.')}.")
    if problems:
        raise UsageError(" ".join(problems))
    return found


def flags(asked: Asked) -> list[str]:
    """Return the settings that were filled in as the command line has them."""
    return [_flag(item, text) for item in knob_specs() if (text := asked.one(item.name, ""))]


def fields_of(message: str, kind: str) -> list[str]:
    """Return the fields that an error of a kind speaks of; none where it is not known.

    >>> fields_of("--rank must be 1 or more; found 0.", "usage"), fields_of("No rows.", "data")
    (['rank'], ['data'])
    """
    known = {field.name for field in fields()} | set(_WHERE)
    found = [name.replace("-", "_") for name in _FLAG.findall(message)]
    named = [_WHERE.get(name, name) for name in found if name in known]
    if kind in _BY_ERROR:
        return [_BY_ERROR[kind]]
    return list(dict.fromkeys(named))


def suggested_files(typed: str, most: int = 50) -> Iterator[str]:
    """Yield files of rows and folders whose path begins with what was typed."""
    folder, _, start = typed.rpartition("/")
    place = Path(f"{folder}/" if typed.startswith("/") else folder or ".").expanduser()
    try:
        entries = sorted(place.iterdir())
    except (OSError, ValueError, RuntimeError):
        return
    for entry in entries:
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        if most and (entry.is_dir() or holds_rows(entry.name)):
            most -= 1
            shown = f"{folder}/{entry.name}" if folder or typed.startswith("/") else entry.name
            yield f"{shown}/" if entry.is_dir() else shown


def _field(item: Knob) -> Field:
    plain = plain_type(item.type)
    kind, choices = _kind(plain)
    settled = item.default not in (None, ()) and "(default:" not in item.help
    default = item.default
    if isinstance(default, bool):
        default = "yes" if default else "no"
    elif isinstance(default, tuple):
        default = ",".join(default)
    label = item.name.replace("_", " ")
    return Field(
        name=item.name,
        label=label[0].upper() + label[1:],
        help=item.help,
        kind=kind,
        choices=choices,
        default=str(default) if settled else "",
    )


def _kind(plain: Any) -> tuple[Kind, tuple[str, ...]]:
    if plain is bool:
        return "switch", ("yes", "no")
    if plain is Method:
        return "choice", tuple(METHODS)
    if get_origin(plain) is Literal:
        return "choice", tuple(map(str, get_args(plain)))
    return ("number" if plain in (int, float) else "text"), ()


def _value(item: Knob, text: str) -> Any:
    plain = plain_type(item.type)
    if plain is bool:
        if text not in {"yes", "no"}:
            raise UsageError(f"yes or no; found {text[:40]!r}.")
        return text == "yes"
    if plain in (int, float):
        return _number(plain, text)
    if plain is Checkpointing:
        parse_checkpointing(text)
    elif get_origin(plain) is tuple and not parse_names(text):
        raise UsageError(f"{text[:40]!r} names nothing.")
    elif (choices := _kind(plain)[1]) and text not in choices:
        raise UsageError(f"one of {', '.join(choices)}; found {text[:40]!r}.")
    return text


def _number(kind: Callable[[str], int | float], text: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"It must be {what}; found {text[:40]!r}.") from None


def _flag(item: Knob, text: str) -> str:
    if plain_type(item.type) is bool:
        return item.flag if text == "yes" else f"--no-{item.flag[2:]}"
    return f"{item.flag}={text}"


def errors_by_field(message: str, kind: str) -> Mapping[str, str]:
    """Return an error by the fields that it speaks of; under ``""`` if there are none.

    >>> errors_by_field("--rank must be 1 or more; found 0. --steps must be 1 or more; found 0.", "usage")
    {'rank': '--rank must be 1 or more; found 0.', 'steps': '--steps must be 1 or more; found 0.'}
    """
    parts = _PROBLEMS.split(message)
    if all(part.startswith("--") for part in parts):
        return {name: part for part in parts for name in fields_of(part, kind)[:1] or [""]}
    return dict.fromkeys(fields_of(message, kind) or [""], message)
