"""Reading a plan file back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.choice import choice_from_json
from edgetune.errors import UsageError
from edgetune.memory import MemoryEstimate, Parts, Phases
from edgetune.plan.record import VERSION, DataFacts, DeviceSummary, ModelSummary, Plan, Rejected
from edgetune.shape import ModelShape
from edgetune.spec import Training
from edgetune.speed import TimeEstimate

FILE_NAME = "edgetune-plan.yaml"


def plan_from_json(plain: Mapping[str, Any], shape: ModelShape) -> Plan:
    """Return the plan that :meth:`Plan.to_json` wrote, for a model of this shape.

    Raises:
        UsageError: if it is of another version or incomplete.
    """
    if plain.get("version") != VERSION:
        raise UsageError(f"The plan is of version {plain.get('version')}; expected {VERSION}.")
    try:
        memory = dict(plain["memory"])
        return Plan(
            device=DeviceSummary(**plain["device"]),
            model=ModelSummary(**plain["model"]),
            data=DataFacts(**plain["data"]) if plain.get("data") else None,
            shape=shape,
            choice=choice_from_json(plain["choice"]),
            training=Training(**plain["training"]),
            memory=MemoryEstimate(
                peak_bytes=memory["peak_bytes"],
                phases=Phases(**memory["phases"]),
                parts=Parts(**memory["parts"]),
            ),
            time=TimeEstimate(**plain["time"]),
            fits=plain["fits"],
            reasons=tuple(plain["reasons"]),
            rejected=tuple(Rejected(**item) for item in plain["rejected"]),
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"The plan file is incomplete or was changed: {error}.") from None


def read_plan_file(path: Path) -> dict[str, Any]:
    """Return what a plan file holds.

    Raises:
        UsageError: if it cannot be read as a plan.
    """
    import yaml

    try:
        plain = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no plan file {path}. Make one with `edgetune plan`.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"The plan file {path} cannot be read: {reason}") from None
    if not isinstance(plain, dict) or "choice" not in plain:
        raise UsageError(f"{path} is not a plan file. Make one with `edgetune plan`.")
    return plain
