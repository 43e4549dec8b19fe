"""What the planner's tests share: devices of any size, models by name, plans of both."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from edgetune.device import Device
from edgetune.device.profiles import profile_device
from edgetune.model import resolve
from edgetune.planning import DataFacts, Plan, make_plan
from edgetune.shape import ModelShape

GB = 10**9


@cache
def shape_of(model: str) -> ModelShape:
    """Return the shape of a profile."""
    return resolve(model).shape


@cache
def card() -> Device:
    """Return a card of 8 GB."""
    return profile_device("rtx-4060-laptop")


@cache
def processor() -> Device:
    """Return a processor without 16-bit products, with 16 GB."""
    return profile_device("cpu-laptop-16gb")


def sized(device: Device, usable: int) -> Device:
    """Return the device with so much memory to use."""
    return replace(device, usable_bytes=usable, free_bytes=usable, total_bytes=usable)


def plan_of(model: str, device: Device, facts: DataFacts | None = None, **fixed: Any) -> Plan:
    """Return the plan for a model on a device; ``training`` and ``memory`` may be among ``fixed``."""
    training, memory = fixed.pop("training", {}), fixed.pop("memory", None)
    return make_plan(
        device, model, shape_of(model),
        fixed=fixed, training=training, facts=facts, memory=memory,
    )  # fmt: skip
