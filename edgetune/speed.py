"""Seconds of a step as a pure function of the model's shape, a choice and a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgetune.choice import Choice
from edgetune.device import Device
from edgetune.shape import ModelShape

EFFICIENCY = 0.4
"""Share of a device's peak rate that training reaches: what well-tuned loops report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """How long an optimizer step takes, and where the figure comes from."""

    seconds_per_step: float
    tokens_per_second: float
    basis: Literal["measured", "profile"] = "profile"


def step_time(shape: ModelShape, choice: Choice, device: Device) -> TimeEstimate:
    """Return the time of an optimizer step.

    A token costs two operations a weight forward, two backward through a frozen matrix (the
    gradient of the input alone), and two more where its block is computed again.
    """
    rate = device.rate_16bit if choice.compute_dtype == "bfloat16" else device.rate_32bit
    tokens = choice.tokens * choice.accumulation
    again = choice.checkpointing.layers / shape.layers
    block = shape.layers * shape.block_linear_parameters
    head = shape.vocabulary * shape.hidden_size
    operations = tokens * (block * (4 + 2 * again) + 4 * head + 6 * choice.method.parameters(shape))
    seconds = operations / (rate * EFFICIENCY) if rate else 0.0
    speed = tokens / seconds if seconds else 0.0
    return TimeEstimate(seconds_per_step=seconds, tokens_per_second=speed)
