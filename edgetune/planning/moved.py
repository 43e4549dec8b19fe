"""A plan on a machine that it was not made for."""

from __future__ import annotations

from dataclasses import replace

from edgetune.device import Device
from edgetune.memory import MemoryModel
from edgetune.planning.capability import platform_of
from edgetune.planning.plan import Plan, mean_document
from edgetune.storage import FLOAT32_BYTES


def with_sums_held(plan: Plan, count: int) -> Plan:
    """Return a plan with the memory of a rank on which so many sums of gradients wait for another."""
    every = FLOAT32_BYTES * plan.choice.method.parameters(plan.shape)
    parts, phases = plan.memory.parts, plan.memory.phases
    planned = max(0, parts.gradients // every - 1)
    held = every * max(0, count - planned)
    phases = replace(
        phases,
        train=phases.train + held,
        evaluate=phases.evaluate + held,
        save=phases.save + held,
    )
    memory = replace(
        plan.memory,
        peak_bytes=phases.peak,
        phases=phases,
        parts=replace(parts, gradients=parts.gradients + held),
    )
    return replace(plan, memory=memory)


def moved(plan: Plan, device: Device) -> Plan:
    """Return a plan with the memory that its choice takes on a device as it is now.

    Engines multiply as a processor can, and compute with kernels of their own where a card has what
    these need: both decide what they hold. The choice stays.
    """
    now = replace(
        plan.device, multiplies_16bit=device.multiplies_16bit, kernels=device.kernels
    )  # fmt: skip
    if now == plan.device:
        return plan
    documents = mean_document(plan.data, plan.training)
    model = MemoryModel(
        plan.shape, plan.choice.method, platform_of(device),
        documents=documents, objective=plan.objective,
        forked=bool(plan.training.share_prompts),
    )  # fmt: skip
    return replace(plan, device=now, memory=model.estimate(plan.choice))
