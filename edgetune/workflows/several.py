"""Several adapters over one base, held against the plan's memory before the base is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgetune.errors import NothingFitsError
from edgetune.memory import Platform
from edgetune.memory.serving import ServingEstimate, serving_estimate
from edgetune.methods import Method
from edgetune.planning import Plan
from edgetune.units import format_bytes, precise_bytes


def serving_of(plan: Plan, methods: Sequence[Method]) -> ServingEstimate:
    """Return what a plan's base takes with an adapter of each of these methods."""
    device = plan.device
    platform = Platform(kind=device.kind, multiplies_16bit=device.multiplies_16bit)
    return serving_estimate(plan.shape, plan.choice, plan.memory, platform, methods)


def with_room(plan: Plan, serving: ServingEstimate, *, of_run: bool = False) -> Plan:
    """Return a plan whose peak holds its base with all adapters.

    ``of_run`` says that it is that of a run, which ``--memory`` does not change.

    Raises:
        NothingFitsError: if they do not fit, with how many would.
    """
    budget, peak = plan.device.budget_bytes, serving.peak_bytes
    if peak > budget:
        count, fit = len(serving.adapters), serving.first(budget)
        more = f"--memory {-(-peak // 10**6)}MB"
        remedy = (
            f"give the runs' adapters (RUN/adapter) with {more}"
            if of_run
            else f"let more be used with {more}"
        )
        raise NothingFitsError(
            f"{count} adapters over {plan.model.ref} take {precise_bytes(peak)}, "
            f"{precise_bytes(sum(serving.adapters))} of them their own; {precise_bytes(budget)} may "
            f"be used: {fit} of them fit. Name fewer, or {remedy}."
        )
    memory = plan.memory
    phases = replace(memory.phases, train=max(memory.phases.train, peak))  # as backends are told
    return replace(plan, memory=replace(memory, peak_bytes=phases.peak, phases=phases))


def serving_text(plan: Plan, serving: ServingEstimate) -> str:
    """Return what serving takes, and for how many more adapters there is room."""
    count, budget = len(serving.adapters), plan.device.budget_bytes
    each = sum(serving.adapters) / count
    return (
        f"{format_bytes(serving.base)} of base and runtime, {count} x {format_bytes(each)} of "
        f"adapters, {format_bytes(serving.row)} for a row of {serving.tokens} tokens: "
        f"{precise_bytes(serving.peak_bytes)} of {precise_bytes(budget)}; room for "
        f"{serving.further(budget):,} more like the largest"
    )
