"""Flags, made from the settings in :mod:`edgetune.settings.spec`, and those that every command has."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENAMETOOLONG
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from edgetune.cli.show import NORMAL, QUIET, VERBOSE, set_verbosity, verbosity
from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.methods import METHODS, Method
from edgetune.profile import model_names
from edgetune.settings.spec import Checkpointing, Knob, Training, knobs
from edgetune.units import parse_bytes
from edgetune.workflows.over import Over
from edgetune.workflows.settings import knob_specs, parse_checkpointing, parse_names, plain_type

_USUAL_METHODS = ["lora", "dora", "full"]

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


def named(value: Any, param: click.Parameter | None) -> Any:
    """Return the name of something, as it is given.

    Raises:
        UsageError: if it is empty, which elsewhere means the folder that one is in.
    """
    if str(value) == "":
        raise UsageError(f"{called(param)} is empty. Give a name.")
    return value


def called(param: click.Parameter | None) -> str:
    """Return what an option or an argument is called."""
    if param is None:
        return "A name"
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return param.human_readable_name.strip("[].").upper()


class FilePath(click.ParamType[Path]):
    """The name of a file or folder, there or not."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell offer files."""
        return [CompletionItem(incomplete, type="file")]

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Return the path, if it is one that the system can be asked about."""
        path = Path(named(value, param))
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


class Named(click.ParamType[str]):
    """A name that is taken as it is, if there is one."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name."""
        return str(named(value, param))


class Model(Named):
    """A model's name; shells are offered the known ones, and files."""

    name = "ref"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the known models that begin so, and what lets the shell offer files."""
        known = [CompletionItem(name) for name in model_names() if name.startswith(incomplete)]
        return known or [CompletionItem(incomplete, type="file")]


class MethodName(click.Choice[str]):
    """The name of a method; one that is unknown is answered with a few."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name."""
        if value not in self.choices:
            self.fail(_no_method(str(value), list(self.choices)), param, ctx)
        return str(value)


def _no_method(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=4, cutoff=0.5) or _USUAL_METHODS
    quantized = " 4-bit weights are --quantization." if "qlora" in name else ""
    return f"{name!r} is no method. Nearest: {', '.join(near)}; docs/methods.md has all.{quantized}"


class Names(click.ParamType["tuple[str, ...]"]):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, tuple):
            return value
        names = parse_names(value)
        if not names:
            self.fail(f"{value!r} names nothing.", param, ctx)
        return names


class CheckpointingType(click.ParamType[Any]):
    """``none``, ``all`` or a number of blocks, with ``:host`` or ``:disk`` for offloading."""

    name = "checkpointing"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the setting; ``all`` stays a word until the model is known."""
        try:
            return parse_checkpointing(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


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
            help="Print more to stderr.",
        ),
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_set_level(QUIET),
            help="Print only results and errors.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ):
        function = option(function)
    return function


model_option = click.option(
    "--model",
    type=Model(),
    metavar="REF",
    help="A folder, a GGUF file, ollama:NAME, a hub id or a profile.",
)
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

    base = click.option(
        "--model", type=Model(), metavar="REF", help="The base of an adapter that is not a run's."
    )
    return base(device_option(memory_option(with_over)))  # type: ignore[return-value]


def _set_level(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def set_level(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given and verbosity() not in {NORMAL, level}:
            raise click.UsageError("--quiet and --verbose contradict each other.")
        if given:
            set_verbosity(context, level)

    return set_level


def _option(item: Knob) -> Callable[[F], F]:
    plain = Named() if item.metavar == "FILE" else plain_type(item.type)
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


def _click_type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if get_origin(kind) is tuple:
        return Names()
    if kind is Checkpointing:
        return CheckpointingType()
    if kind is Method:
        return MethodName(list(METHODS))
    return kind
