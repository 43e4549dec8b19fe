"""A plan on a machine that it was not made for."""

from __future__ import annotations

from dataclasses import replace

from edgetune.device import Device
from edgetune.memory import MemoryModel
from edgetune.planning.capability import platform_of
from edgetune.planning.plan import Plan, mean_document


def moved(plan: Plan, processor: Device) -> Plan:
    """Return a processor's plan with the memory that its choice takes on this one.

    Engines multiply as the processor can, which decides what they hold; the choice stays.
    """
    if plan.device.multiplies_16bit == processor.multiplies_16bit:
        return plan
    documents = mean_document(plan.data, plan.training)
    model = MemoryModel(
        plan.shape, plan.choice.method, platform_of(processor),
        documents=documents, objective=plan.objective,
    )  # fmt: skip
    device = replace(plan.device, multiplies_16bit=processor.multiplies_16bit)
    return replace(plan, device=device, memory=model.estimate(plan.choice))
