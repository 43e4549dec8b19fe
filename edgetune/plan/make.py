"""Making a plan: down the ladder to the first rung on which something fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.device import Device
from edgetune.errors import NothingFitsError
from edgetune.plan.ladder import Rung, rungs
from edgetune.plan.neighbours import neighbours
from edgetune.plan.reasons import reasons_for
from edgetune.plan.record import DataFacts, DeviceSummary, ModelSummary, Plan
from edgetune.plan.refusal import refusal
from edgetune.plan.request import Request, make_request
from edgetune.plan.search import Found, Search
from edgetune.shape import ModelShape
from edgetune.speed import Measurements, TimeModel, rates_of


def make_plan(
    device: Device,
    ref: str,
    shape: ModelShape,
    *,
    fixed: Mapping[str, Any],
    training: Mapping[str, Any],
    facts: DataFacts | None = None,
    memory: int | None = None,
    measured: Measurements | None = None,
) -> Plan:
    """Return the fastest choice within the memory that keeps what the user fixed.

    ``fixed`` holds knobs of the choice by name, method settings among them, ``training`` those
    of the training; ``memory`` is a limit in bytes. With more memory the choice touches the
    result less or, on the same rung of the ladder, is as fast or faster.

    Raises:
        NothingFitsError: if nothing fits, with the nearest thing that would.
        UsageError: if the fixed knobs contradict each other, the model or the device.
    """
    request = make_request(device, shape, fixed, training, facts, memory)
    search = Search(request, rates_of(device, measured))
    found, above = _first_fit(request, search)
    if found is None:
        raise NothingFitsError(refusal(ref, request, search))
    time = TimeModel(shape, found.choice.method, search.rates).estimate(found.choice)
    return Plan(
        device=DeviceSummary.of(device, request.budget, memory),
        model=ModelSummary.of(ref, shape),
        shape=shape,
        choice=found.choice,
        training=request.training,
        memory=found.memory,
        time=time,
        fits=True,
        data=facts,
        reasons=(*request.reasons, *reasons_for(found, request, search, above)),
        rejected=tuple(neighbours(found, request, search)),
    )


def _first_fit(request: Request, search: Search) -> tuple[Found | None, list[Rung]]:
    """Return the best choice of the first rung that has one, and the rungs above it."""
    above: list[Rung] = []
    for rung in rungs(request):
        if found := search.fastest(rung):
            return found, above
        above.append(rung)
    return None, above
