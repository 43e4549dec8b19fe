"""Seconds of a step as pure functions of a model's shape, a choice and a device's rates."""

from edgetune.speed.measured import (
    Measurements,
    load_measurements,
    save_measurements,
    versions_of,
    way,
)
from edgetune.speed.rates import Rates, rates_of
from edgetune.speed.step import TimeEstimate, TimeModel

__all__ = [
    "Measurements",
    "Rates",
    "TimeEstimate",
    "TimeModel",
    "load_measurements",
    "rates_of",
    "save_measurements",
    "versions_of",
    "way",
]
