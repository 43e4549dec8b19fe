"""Seconds of a step as pure functions of a model's shape, a choice and a device's rates."""

from edgetune.speed.attention import ATTENTION_PASSES
from edgetune.speed.measured import (
    Experience,
    Measurements,
    load_measurements,
    save_measurements,
    settings_of,
    versions_of,
    way,
)
from edgetune.speed.rates import Rates, rates_of
from edgetune.speed.run import Work, judging_limit, rectangles, run_estimate
from edgetune.speed.shortest import shortest_seconds
from edgetune.speed.step import (
    Rectangle,
    RunEstimate,
    TimeEstimate,
    TimeModel,
)

__all__ = [
    "ATTENTION_PASSES",
    "Experience",
    "Measurements",
    "Rates",
    "Rectangle",
    "RunEstimate",
    "TimeEstimate",
    "TimeModel",
    "Work",
    "judging_limit",
    "load_measurements",
    "rates_of",
    "rectangles",
    "run_estimate",
    "save_measurements",
    "settings_of",
    "shortest_seconds",
    "versions_of",
    "way",
]
