"""Imports and plans look for garbage rarely, and leave Python's own rule as it was."""

from __future__ import annotations

import gc

import pytest

from edgetune.device import read_device
from edgetune.errors import UsageError
from edgetune.garbage import RARELY, rarely_collected
from edgetune.model import resolve
from edgetune.planning import make_plan

SHAPE = resolve("llama-7b").shape


def test_the_rule_is_another_one_inside() -> None:
    before = gc.get_threshold()
    with rarely_collected():
        assert gc.get_threshold() == RARELY
    assert gc.get_threshold() == before


def test_the_rule_comes_back_after_an_error() -> None:
    before = gc.get_threshold()
    with pytest.raises(UsageError):
        make_plan(read_device("m2-8gb"), "", SHAPE, fixed={"rank": 0}, training={})
    assert gc.get_threshold() == before


def test_a_plan_looks_through_what_it_made_a_few_times() -> None:
    device = read_device("m2-8gb")
    before = _collections()
    make_plan(device, "", SHAPE, fixed={}, training={})

    assert _collections() - before <= 10  # by Python's own rule it is some 90 times


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())
