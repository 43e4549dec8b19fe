"""``--config FILE``: settings from a YAML file by the names of the flags, or from a plan file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from edgetune.cli.habits import HINTS, known_as
from edgetune.cli.options import FilePath
from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.files import read_bounded
from edgetune.settings.strict_yaml import parsed_yaml

LARGEST: Final = 1 << 18
"""Bytes of a config; one with every setting has two thousand."""
_SHOWN: Final = 8
_OF_RUNS: Final = frozenset(
    {"output", "plan", "resume", "from", "dry-run", "pause", "strict", "log", "notify"}
    | {"no-verdict", "samples"}
)
"""What only `edgetune train` takes: a plan made from the same file leaves it alone."""
_NEVER: Final = frozenset({"config", "help", "debug", "json", "nproc"})
"""What is read before a file is: on the command line alone."""
_NUMBERS: Final = {
    "integer": "a whole number", "float": "a number", "size": "a size such as 6GB",
}  # fmt: skip


def _read(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take a file's settings as what is not given on the command line."""
    if path is None:
        return
    content = _content(path)
    if "choice" in content and "version" in content:
        ctx.default_map = {**(ctx.default_map or {}), "plan_file": str(path)}
        return
    settings, hints = _settings(ctx, path, content)
    ctx.default_map = {**(ctx.default_map or {}), **settings}
    ctx.meta[HINTS] = hints


config_option = click.option(
    "--config",
    type=FilePath(),
    is_eager=True,
    expose_value=False,
    callback=_read,
    help="A YAML file of settings named like the flags, or a plan file; flags win.",
)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = parsed_yaml(read_bounded(path, LARGEST).decode())
    except FileNotFoundError:
        raise UsageError(f"There is no config file {path}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The config file {path} cannot be read: {reason}.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"{path} is no config: write `name: value` lines, such as `rank: 16`.")
    return content


def _settings(
    ctx: click.Context, path: Path, content: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return a config's settings by the names of parameters, and hints for foreign names."""
    parameters = {opt: p for p in ctx.command.get_params(ctx) for opt in p.opts}
    found: dict[str, Any] = {}
    problems, hints = [], []
    for name, value in content.items():
        if value is None:
            continue
        named = known_as(name, value, parameters)
        if named is None or (ctx.command.name == "plan" and named[0] in _OF_RUNS):
            continue
        ours, known, hint = named
        parameter = parameters.get(f"--{ours}")
        if parameter is None or parameter.name is None or ours in _NEVER:
            problems.append(name)
            continue
        if parameter.name in found:
            raise UsageError(f"{path} says --{ours} twice: {name} is the same setting.")
        found[parameter.name] = _plain(path, name, known, parameter)
        if hint is not None and name.replace("_", "-") != ours:
            hints.append(hint.removeprefix("--"))
    if problems:
        listed = ", ".join(map(short, problems[:_SHOWN]))
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UsageError(
            f"{path} has settings that are not known: {listed}{more}. Settings are called as the "
            "flags of `edgetune train --help`, such as `micro-batch: 4`."
        )
    return found, hints


def _plain(path: Path, name: str, value: Any, parameter: click.Parameter) -> Any:
    """Return a value as a command line would have it."""
    if isinstance(value, bool):
        if isinstance(parameter, click.Option) and parameter.is_flag:
            return value
        wanted = _NUMBERS.get(parameter.type.name.removesuffix(" range"), "a text")
        raise UsageError(
            f"{path}: {name} must be {wanted}; found {str(value).lower()}, as YAML also reads yes, "
            "no, on and off without quotation marks."
        )
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, str | int | float):
        return str(value)
    raise UsageError(f"{path}: {name} must be one value, or a list of names; found {short(value)}.")
