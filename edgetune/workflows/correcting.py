"""What a pilot's step says of rates that were measured before: a busy machine measures too slow."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from edgetune.device import read_device
from edgetune.planning import Plan
from edgetune.speed import Measurements, TimeModel, rates_of, rectangles, save_measurements
from edgetune.workflows.measured import measured

NEAR: Final = 1.3
"""Times that a step may take more or less than predicted without the rates being doubted."""

LEAST: Final = 0.1
"""Share of the measured seconds that rates are corrected to at most."""


def correct_rates(
    plan: Plan, shapes: Iterable[tuple[int, int]], seconds: float
) -> Measurements | None:
    """Correct what is kept of this machine's speed by one real step, and return what is kept now.

    ``shapes`` are the (rows, width) of the step's micro-batches. A step much faster than predicted
    shows that the machine was busy when it was measured: its rates are kept as that much higher.
    One that is much slower takes such a correction back and no more, for the machine may be busy
    now. None if nothing is changed.
    """
    device = read_device(plan.device.kind)
    found = measured(device) if device.name == plan.device.name else None
    if found is None or plan.time.basis != "measured" or seconds <= 0:
        return None
    times = TimeModel(plan.shape, plan.choice.method, rates_of(device, found), plan.objective)
    share = seconds / times.step_of(plan.choice, rectangles(shapes))
    if 1 / NEAR <= share <= NEAR:
        return None
    correction = min(max(found.correction * share, LEAST), 1.0)
    if correction == found.correction:
        return None
    corrected = replace(found, correction=correction)
    with suppress(OSError):
        save_measurements(corrected)  # without a cache it is measured again
    return corrected
