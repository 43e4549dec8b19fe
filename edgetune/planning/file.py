"""Reading a plan file back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.choice import choice_from_json
from edgetune.errors import UsageError
from edgetune.files import read_bounded
from edgetune.memory import MemoryEstimate
from edgetune.planning.plan import (
    VERSION,
    Alternative,
    DataFacts,
    DeviceSummary,
    ModelSummary,
    Plan,
)
from edgetune.settings.parse import checked, from_plain
from edgetune.settings.spec import Training
from edgetune.settings.strict_yaml import parsed_yaml
from edgetune.shape import ModelShape
from edgetune.speed import TimeEstimate
from edgetune.units import LEAST_BARE

FILE_NAME = "edgetune-plan.yaml"
_MAKE_ONE = "Make one with `edgetune plan --output FILE`."
_START = 4096
LARGEST = 1 << 18
"""Bytes of a plan file; ours have a few thousand."""
PARTS = (
    "device", "model", "choice", "training", "memory", "time", "fits", "reasons", "alternatives",
)  # fmt: skip


def plan_from_json(plain: Mapping[str, Any], shape: ModelShape) -> Plan:
    """Return the plan that :meth:`Plan.to_json` wrote, for a model of this shape.

    Raises:
        UsageError: if it is of another version, incomplete, or a value is of another type.
    """
    if plain.get("version") != VERSION:
        raise UsageError(f"The plan is of version {plain.get('version')}; expected {VERSION}.")
    missing = [name for name in PARTS if name not in plain]
    if missing:
        raise UsageError(f"The plan file is incomplete: it has no {', '.join(missing)}.")
    return Plan(
        device=_device(plain["device"]),
        model=from_plain(ModelSummary, plain["model"], "model"),
        data=checked(DataFacts | None, plain.get("data"), "data"),
        shape=shape,
        choice=choice_from_json(checked(dict, plain["choice"], "choice")),
        training=from_plain(Training, plain["training"], "training"),
        memory=from_plain(MemoryEstimate, plain["memory"], "memory"),
        time=from_plain(TimeEstimate, plain["time"], "time"),
        fits=checked(bool, plain["fits"], "fits"),
        reasons=checked(tuple[str, ...], plain["reasons"], "reasons"),
        alternatives=checked(tuple[Alternative, ...], plain["alternatives"], "alternatives"),
        given=checked(tuple[str, ...] | None, plain.get("given"), "given"),
    )


def _device(plain: Any) -> DeviceSummary:
    device = from_plain(DeviceSummary, plain, "device")
    for name in ("limit_bytes", "budget_bytes"):
        size = getattr(device, name)
        if size is not None and size < LEAST_BARE:
            raise UsageError(
                f"device.{name} is {size} bytes, and no run fits in less than 1 MB. Write the "
                "number of bytes in full."
            )
    return device


def is_plan_file(path: Path) -> bool:
    """Return whether a file looks like a plan, whatever is wrong with it.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    return b"edgetune plan" in start or b"\nchoice:" in start or start.startswith(b"version:")


def read_plan_file(path: Path) -> dict[str, Any]:
    """Return what a plan file holds.

    Raises:
        UsageError: if it cannot be read as a plan.
    """
    try:
        plain = parsed_yaml(read_bounded(path, LARGEST).decode())
    except FileNotFoundError:
        raise UsageError(f"There is no plan file {path}. {_MAKE_ONE}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The plan file {path} cannot be read: {reason}.") from None
    if not isinstance(plain, dict) or "choice" not in plain:
        raise UsageError(f"{path} is not a plan file. {_MAKE_ONE}")
    return plain
