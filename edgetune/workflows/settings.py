"""Settings as a user gives them, by name: which there are, and which part of a request they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from edgetune.choice import Choice
from edgetune.errors import UsageError
from edgetune.methods import METHODS, Method, method_class
from edgetune.settings.parse import checked
from edgetune.settings.spec import Checkpointing, Knob, Training, knobs, refuse_outside

Setting = str | int | float | bool | Iterable[str] | None
"""What a setting can be given as; lists of names also as text with commas between."""


def knob_specs() -> list[Knob]:
    """Return every setting of a run: the choice's, the methods' and the training's."""
    found = {item.name: item for item in knobs(Choice)}
    for kind in METHODS:
        found |= {item.name: item for item in knobs(method_class(kind)) if item.name not in found}
    return [*found.values(), *knobs(Training)]


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the user fixed: knobs of the choice and of the training, by name."""

    choice: dict[str, Any]
    training: dict[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Fixed:
        """Sort values that have their types; None is not given.

        Raises:
            UsageError: if a number makes no sense, or two settings contradict each other.
        """
        given = {name: value for name, value in values.items() if value is not None}
        refuse_outside(knob_specs(), given)
        training = {item.name for item in knobs(Training)}
        if given.get("steps") is not None and given.get("epochs") is not None:
            raise UsageError("--steps and --epochs both say how long to train. Give one of them.")
        return cls(
            choice={name: value for name, value in given.items() if name not in training},
            training={name: value for name, value in given.items() if name in training},
        )

    @classmethod
    def named(cls, settings: Mapping[str, Setting]) -> Fixed:
        """Sort settings as Python code gives them.

        Raises:
            UsageError: if there is no setting of a name, or a value is of another type; else as
                :meth:`of`.
        """
        known = {item.name: item for item in knob_specs()}
        if strange := [name for name in settings if name not in known]:
            raise UsageError(
                f"There is no setting {', '.join(strange)}. Settings are called as the "
                "flags of `edgetune train --help`, with underscores: learning_rate, rank, steps."
            )
        return cls.of({name: _typed(known[name], value) for name, value in settings.items()})

    @property
    def names(self) -> frozenset[str]:
        """What was fixed."""
        return frozenset({*self.choice, *self.training})

    def __bool__(self) -> bool:
        """Tell whether anything was fixed."""
        return bool(self.choice or self.training)


def parse_checkpointing(text: str) -> Checkpointing | str:
    """Return ``none``, ``all`` or a number of blocks, with ``:host`` or ``:disk`` for offloading.

    ``all`` stays a word until the model is known.

    Raises:
        UsageError: if it is something else.
    """
    count, _, offload = text.partition(":")
    if offload not in {"", "none", "host", "disk"}:
        raise UsageError(f"{offload!r} is not a place: host or disk.")
    if count == "none" and offload:
        raise UsageError(f"{text!r} keeps no block's input; write 4:{offload}.")
    if count == "all":
        return f"all:{offload}" if offload else "all"
    if not count.isdecimal() and count != "none":
        raise UsageError(f"{text!r} is not none, all or a number of blocks.")
    layers = 0 if count == "none" else int(count)
    return Checkpointing(layers=layers, offload=offload or "none")  # type: ignore[arg-type]


def parse_names(text: str) -> tuple[str, ...]:
    """Return names that commas separate."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def plain_type(kind: Any) -> Any:
    """Return an annotation without None."""
    if get_origin(kind) in {Union, UnionType}:
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _typed(item: Knob, value: Any) -> Any:
    if value is None:
        return None
    kind = plain_type(item.type)
    if kind is Checkpointing:
        return value if isinstance(value, Checkpointing) else parse_checkpointing(str(value))
    if kind is Method:
        return value.kind if isinstance(value, Method) else checked(str, value, item.name)
    if get_origin(kind) is tuple and isinstance(value, str):
        return parse_names(value)
    return checked(kind, value, item.name)
