"""Making a plan: down the ladder to the first rung on which something fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.device import Device
from edgetune.garbage import rarely_collected
from edgetune.planning.alternatives import alternatives
from edgetune.planning.ladder import Rung, rungs
from edgetune.planning.plan import DataFacts, DeviceSummary, ModelSummary, Plan
from edgetune.planning.problem import SearchProblem, make_problem
from edgetune.planning.reasons import reasons_for
from edgetune.planning.refusal import refusal
from edgetune.planning.search import Found, Search
from edgetune.shape import ModelShape
from edgetune.speed import Measurements, rates_of


@rarely_collected()
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
    ranks: int = 1,
) -> Plan:
    """Return the fastest choice within the memory that keeps what the user fixed.

    ``fixed`` holds knobs of the choice by name, method settings among them, ``training`` those
    of the training; ``memory`` is a limit in bytes. A step has a micro-batch for each of so many
    ``ranks``. With more memory the choice touches the
    result less or, on the same rung of the ladder, is as fast or faster.

    Raises:
        NothingFitsError: if nothing fits, with the nearest thing that would.
        UsageError: if the fixed knobs contradict each other, the model or the device.
    """
    problem = make_problem(device, shape, fixed, training, facts, memory, ranks)
    search = Search(problem, rates_of(device, measured))
    found, above = _first_fit(problem, search)
    if found is None:
        raise refusal(ref, problem, search)
    times = search.times(found.choice.method)
    return Plan(
        device=DeviceSummary.of(device, problem.budget, memory),
        model=ModelSummary.of(ref, shape),
        shape=shape,
        choice=found.choice,
        training=problem.training,
        memory=found.memory,
        time=times.estimate(found.choice),
        fits=True,
        data=facts,
        reasons=(*problem.reasons, *reasons_for(found, problem, search, above)),
        alternatives=tuple(alternatives(found, problem, search)),
    )


def _first_fit(problem: SearchProblem, search: Search) -> tuple[Found | None, list[Rung]]:
    """Return the best choice of the first rung that has one, and the rungs above it."""
    above: list[Rung] = []
    for rung in rungs(problem):
        if found := search.fastest(rung):
            return found, above
        above.append(rung)
    return None, above
