"""Flags, made from the settings in :mod:`edgetune.settings.spec`, and those that every command has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import ENAMETOOLONG
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click

from edgetune.choice import Choice
from edgetune.cli.show import NORMAL, QUIET, VERBOSE, set_verbosity, verbosity
from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.methods import METHODS, Method, method_class
from edgetune.settings.spec import Checkpointing, Knob, Training, knobs, refuse_outside
from edgetune.units import parse_bytes
from edgetune.workflows.over import Over

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A number of bytes such as ``6GB``."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the bytes."""
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class FilePath(click.ParamType[Path]):
    """The name of a file or folder, there or not."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Return the path, if it is one that the system can be asked about."""
        path = Path(value)
        try:
            path.lstat()
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) or error.errno == ENAMETOOLONG:
                reason = getattr(error, "strerror", None) or error
                raise UsageError(f"{short(str(path))} cannot be looked at: {reason}.") from None
        return path


class Ref(click.ParamType[str]):
    """What is called a run, an adapter or a model: a folder, or a name."""

    name = "ref"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name, if it is one that the system can be asked about as a path."""
        FilePath().convert(value, param, ctx)
        return str(value)


class Names(click.ParamType["tuple[str, ...]"]):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in value.split(",") if part.strip())
        if not names:
            self.fail(f"{value!r} names nothing.", param, ctx)
        return names


class CheckpointingType(click.ParamType[Any]):
    """``none``, ``all`` or a number of blocks, with ``:host`` or ``:disk`` for offloading."""

    name = "checkpointing"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the setting; ``all`` stays a word until the model is known."""
        count, _, offload = str(value).partition(":")
        if offload not in {"", "none", "host", "disk"}:
            self.fail(f"{offload!r} is not a place: host or disk.", param, ctx)
        if count == "none" and offload:
            self.fail(f"{value!r} keeps no block's input; write 4:{offload}.", param, ctx)
        if count == "all":
            return f"all:{offload}" if offload else "all"
        if not count.isdecimal() and count != "none":
            self.fail(f"{value!r} is not none, all or a number of blocks.", param, ctx)
        return Checkpointing(
            layers=0 if count == "none" else int(count),
            offload=offload or "none",  # type: ignore[arg-type]
        )


def knob_specs() -> list[Knob]:
    """Return every setting that has a flag: the choice's, the methods' and the training's."""
    found = {item.name: item for item in knobs(Choice)}
    for kind in METHODS:
        found |= {item.name: item for item in knobs(method_class(kind)) if item.name not in found}
    return [*found.values(), *knobs(Training)]


def knob_options(function: F) -> F:
    """Add a flag for every setting to a command; the command gets them as keywords."""
    for item in reversed(knob_specs()):
        function = _option(item)(function)
    return function


def some_knob_options(*names: str, spec: type = Training) -> Callable[[F], F]:
    """Return what adds the flags of some settings of a spec to a command; no names: of all."""
    chosen = [item for item in knobs(spec) if not names or item.name in names]

    def add(function: F) -> F:
        for item in reversed(chosen):
            function = _option(item)(function)
        return function

    return add


def common_options(function: F) -> F:
    """Add the flags that every command has."""
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks."),
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_set_level(VERBOSE),
            help="Say more on stderr.",
        ),
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_set_level(QUIET),
            help="Say nothing but results and errors.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ):
        function = option(function)
    return function


model_option = click.option("--model", metavar="REF", help="A folder, a hub id or a profile.")
data_option = click.option(
    "--data",
    type=FilePath(),
    metavar="FILE",
    help="The examples: a file or a folder of files.",
)
device_option = click.option(
    "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mlx or a profile."
)
memory_option = click.option(
    "--memory", type=Size(), metavar="SIZE", help="Use at most this much, such as 6GB."
)


def over_options(function: F) -> F:
    """Add the flags for what a reference does not say itself; the command gets ``over``."""

    @wraps(function)
    def with_over(*, model: str | None, device: str, memory: int | None, **others: Any) -> Any:
        return function(over=Over(model=model, device=device, memory=memory), **others)

    base = click.option("--model", metavar="REF", help="The base of adapters that are no run's.")
    return base(device_option(memory_option(with_over)))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the user fixed by flags: knobs of the choice and of the training, by name."""

    choice: dict[str, Any]
    training: dict[str, Any]

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Fixed:
        """Sort the flags that were given."""
        given = {name: value for name, value in flags.items() if value is not None}
        refuse_outside(knob_specs(), given)
        training = {item.name for item in knobs(Training)}
        if given.get("steps") is not None and given.get("epochs") is not None:
            raise UsageError("--steps and --epochs both say how long to train. Give one of them.")
        return cls(
            choice={name: value for name, value in given.items() if name not in training},
            training={name: value for name, value in given.items() if name in training},
        )

    def __bool__(self) -> bool:
        """Tell whether anything was fixed."""
        return bool(self.choice or self.training)


def _set_level(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def set_level(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given and verbosity() not in {NORMAL, level}:
            raise click.UsageError("--quiet and --verbose contradict each other.")
        if given:
            set_verbosity(context, level)

    return set_level


def _option(item: Knob) -> Callable[[F], F]:
    plain = _plain_type(item.type)
    told = item.default in (None, ()) or "(default:" in item.help
    text = item.help if told else f"{item.help} [default: {_shown(item)}]"
    if plain is bool:
        name = f"{item.flag}/--no-{item.flag[2:]}"
        return click.option(name, item.name, default=None, help=text)
    return click.option(
        item.flag, item.name, type=_click_type(plain), default=None, help=text, metavar=item.metavar
    )


def _shown(item: Knob) -> str:
    if isinstance(item.default, tuple):
        return ",".join(item.default)
    return str(item.default).lower() if isinstance(item.default, bool) else str(item.default)


def _plain_type(kind: Any) -> Any:
    if get_origin(kind) in {Union, UnionType}:
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _click_type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if get_origin(kind) is tuple:
        return Names()
    if kind is Checkpointing:
        return CheckpointingType()
    if kind is Method:
        return click.Choice(list(METHODS))
    return kind
