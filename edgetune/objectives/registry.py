"""The objectives over whole answers, by name. Entries import on use."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module

from edgetune.errors import UsageError
from edgetune.objectives.base import Objective
from edgetune.settings.spec import OBJECTIVE_SETTINGS, SFT, Training, check_numbers

OBJECTIVES = {
    "dpo": "edgetune.objectives.dpo:DPO",
    "ipo": "edgetune.objectives.ipo:IPO",
    "kto": "edgetune.objectives.kto:KTO",
    "orpo": "edgetune.objectives.orpo:ORPO",
    "simpo": "edgetune.objectives.simpo:SimPO",
}


def objective_class(name: str) -> type[Objective]:
    """Return the class of an objective.

    Raises:
        UsageError: if there is no such objective, naming those there are.
    """
    if name not in OBJECTIVES:
        raise UsageError(
            f"Unsupported objective {name}. Supported: {SFT}, {', '.join(OBJECTIVES)}."
        )
    module, _, attribute = OBJECTIVES[name].partition(":")
    found: type[Objective] = getattr(import_module(module), attribute)
    return found


def objective_of(training: Training) -> Objective | None:
    """Return what a training minimises; None: the plain loss of every token.

    Raises:
        UsageError: if a setting is not one of the objective's, or out of its range.
    """
    given = {
        name: value for name in OBJECTIVE_SETTINGS if (value := getattr(training, name)) is not None
    }
    if training.objective == SFT:
        _refuse(given, frozenset(), SFT)
        return None
    cls = objective_class(training.objective)
    known = frozenset(item.name for item in fields(cls))  # type: ignore[arg-type]
    _refuse(given, known, cls.name)
    objective = cls(**given)
    check_numbers(objective)
    return objective


def _refuse(given: dict[str, float], known: frozenset[str], objective: str) -> None:
    strange = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if strange:
        has = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(known)) or "none"
        raise UsageError(
            f"--objective {objective} has no {', '.join(strange)}. Its own settings: {has}."
        )
