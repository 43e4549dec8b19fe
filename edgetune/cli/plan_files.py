"""The plan file of a folder: taken up with a word about it, never for another machine unasked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.cli.show import say
from edgetune.device import Device, list_devices, read_device
from edgetune.device.base import CARD, card_name
from edgetune.errors import EdgetuneError, UsageError
from edgetune.model import resolve
from edgetune.planning import FILE_NAME, Plan, plan_from_json, read_plan_file
from edgetune.units import format_seconds
from edgetune.workflows.planning import PlanRequest, planned_model, replanned


def complete(request: PlanRequest, plan_file: Path | None) -> PlanRequest:
    """Return the request with what a plan file says, if one is to be taken.

    The plan of this folder is taken where no model and no plan is named, if it is for this
    machine; its rows are taken where none are given.

    Raises:
        UsageError: if there is nothing to take, or the plan is for another machine.
    """
    if request.model and plan_file:
        raise UsageError("--plan already names the model. Give --plan or --model, not both.")
    if request.model:
        return request
    path = plan_file or Path(FILE_NAME)
    if plan_file is None and not path.is_file():
        raise UsageError(
            f"Which model? Give --model REF, or --plan FILE (there is no {FILE_NAME} here)."
        )
    plain = read_plan_file(path)
    plan = plan_from_json(plain, resolve(planned_model(plain, path)).shape)
    request = replace(request, device=_device_of(plan, request.device))
    here = read_device(request.device)
    elsewhere = not same_device(plan, here)
    if elsewhere and plan_file is None:
        raise UsageError(
            f"The {FILE_NAME} of this folder is for {plan.device.name} ({plan.device.kind}), and "
            f"this is {here.name} ({here.kind}). Plan for this machine with --model REF, or "
            f"use its settings anyway: --plan {FILE_NAME}."
        )
    taken = replanned(plan, request)
    if taken.data is None and plan.data is not None:
        taken = replace(taken, data=Path(plan.data.path))
    rows = f", rows of {taken.data}" if taken.data is not None else ""
    planned_for = f"; it was for {plan.device.name}, and is planned anew" if elsewhere else ""
    say(f"Taking {path}, made {_age(path)} ago: {plan.model.ref}{rows}{planned_for}")
    return taken


def _device_of(plan: Plan, wanted: str) -> str:
    """Return the name of the device that a plan is for, if it is here and no other was named."""
    if wanted != "auto":
        return wanted
    seen: Counter[str] = Counter()
    for device in list_devices():
        if same_device(plan, device):
            return card_name(seen[CARD]) if device.kind == CARD else device.kind
        seen[device.kind] += 1
    return wanted


def same_device(plan: Plan, here: Device) -> bool:
    """Return whether a plan is for a device: by its card, or by kind and name."""
    planned = plan.device
    if planned.uuid is not None and here.uuid is not None:
        return planned.uuid == here.uuid
    return (planned.kind, planned.name) == (here.kind, here.name)


def make_room(path: Path, plan: Plan) -> None:
    """Keep a plan of something else that stands where one is to be written, under another name."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        if not _is_other(read_plan_file(path), plan.to_json()):
            return
    except EdgetuneError:
        pass  # whatever is wrong with it, it is the user's
    kept = _free_name(path)
    path.rename(kept)
    say(f"The plan that was there is for something else; it is {kept} now")


def _is_other(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Say whether two plans are about different machines, models or rows."""
    about = (("device", "name"), ("device", "kind"), ("model", "ref"), ("data", "path"))
    pairs = [(_inside(old, *place), _inside(new, *place)) for place in about]
    return any(was is not None and was != now for was, now in pairs)


def _inside(plain: Mapping[str, Any], part: str, name: str) -> Any:
    found = plain.get(part)
    return found.get(name) if isinstance(found, Mapping) else None


def _free_name(path: Path) -> Path:
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return kept


def _age(path: Path) -> str:
    return format_seconds(max(1.0, time.time() - path.stat().st_mtime))
