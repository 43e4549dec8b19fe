"""A plan of a card whose kernels came or went: its memory is counted again, and runs say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from planning import card, plan_of

from edgetune.device import found_again, list_devices
from edgetune.device.base import DeviceIdentity
from edgetune.device.recorded import recorded_system
from edgetune.device.system import System
from edgetune.planning import moved

RECORDINGS = Path(__file__).parent / "fixtures" / "devices"


def machine(name: str) -> System:
    return recorded_system(yaml.safe_load((RECORDINGS / f"{name}.yaml").read_text("utf-8")))


def test_kernels_that_are_gone_are_counted_without_and_back_again_with() -> None:
    plan = plan_of("smollm2-135m", card())
    without = moved(plan, replace(card(), kernels=False))
    back = moved(without, card())

    assert plan.device.kernels
    assert not without.device.kernels
    assert without.choice == plan.choice
    assert without.memory.parts.activations > plan.memory.parts.activations
    assert (
        without.memory.parts.loss < plan.memory.parts.loss
    )  # kernels read all logits of a chunk at once
    assert back == plan
    assert moved(plan, card()) is plan


def test_a_plan_file_says_whether_kernels_compute() -> None:
    assert plan_of("smollm2-135m", card()).to_json()["device"]["kernels"] is True


def test_a_card_is_found_again_by_its_name_alone() -> None:
    system = machine("two-cards")
    first, second, processor = list_devices(system)

    assert found_again(DeviceIdentity("cuda", second.uuid), system) == second != first
    assert found_again(DeviceIdentity("cuda", "GPU-another"), system) is None
    assert found_again(DeviceIdentity("cuda"), system) is None  # one of two
    assert found_again(DeviceIdentity("cpu"), system) == processor
    assert found_again(DeviceIdentity("mlx"), system) is None


def test_the_only_card_needs_no_name() -> None:
    system = machine("jetson-orin-nano")
    board = list_devices(system)[0]

    assert found_again(board.identity, system) == board


@pytest.mark.parametrize("kind", ["cuda", "mlx"])
def test_what_is_not_here_is_not_found(kind: str) -> None:
    assert found_again(DeviceIdentity(kind), machine("ulimit")) is None  # type: ignore[arg-type]
