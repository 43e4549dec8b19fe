"""Building settings from what a file held: every value checked against its annotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgetune.errors import UsageError
from edgetune.escapes import short

T = TypeVar("T")

WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false",
    dict: "a table of settings",
}  # fmt: skip


def from_plain(cls: type[T], plain: Any, where: str) -> T:
    """Return a ``cls`` of the values of ``plain``, lists as tuples; ``where`` names it in errors.

    Raises:
        UsageError: naming the first value that is missing, unknown or of another type.
    """
    if not isinstance(plain, Mapping):
        raise UsageError(f"{where} must be a table of settings; found {short(plain)}.")
    hints, known = get_type_hints(cls), {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for name in plain:
        if name not in known:
            raise UsageError(f"{where}.{name} is not known. There is: {', '.join(known)}.")
    for name, item in known.items():
        if name not in plain and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{where}.{name} is missing.")
    return cls(**{name: checked(hints[name], plain[name], f"{where}.{name}") for name in plain})


def checked(hint: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the annotation ``hint`` has it.

    Raises:
        UsageError: if it is of another type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        return from_plain(hint, value, where)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        (only,) = (kind for kind in inner if kind is not NoneType)
        return checked(only, value, where)
    if origin is Literal:
        if value in inner and not isinstance(value, bool):
            return value
        raise UsageError(f"{where} must be one of {_list(inner)}; found {short(value)}.")
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(checked(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        raise UsageError(f"{where} must be a list; found {short(value)}.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in WORDS and type(value) is not hint:
        raise UsageError(f"{where} must be {WORDS[hint]}; found {short(value)}.")
    return value


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(str(value) for value in values)
