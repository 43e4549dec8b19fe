"""A run says what puts the machine under pressure, once, and waits if it is told to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgetune.device.pressure import pressure, read_pressure
from edgetune.events import Event, SaveDue, Stepped, UnderPressure
from edgetune.events import RunState as State
from edgetune.workflows.throttle import POLL_SECONDS, yield_to_machine


def test_pressure_is_a_battery_that_is_used_or_memory_that_runs_out() -> None:
    assert pressure(percent=None, available=8, total=16) is None
    assert pressure(percent=41.6, available=8, total=16) == "on battery (42 %)"
    assert pressure(percent=None, available=4, total=100) == "short of memory (4 % available)"
    assert pressure(percent=9, available=1, total=100) == (
        "on battery (9 %) and short of memory (1 % available)"
    )


def test_a_machine_that_is_plugged_in_is_not_on_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = pytest.importorskip("psutil")
    memory = type("Memory", (), {"available": 8, "total": 16})
    for plugged, expected in ((True, None), (None, None), (False, "on battery (50 %)")):
        battery = type("Battery", (), {"percent": 50, "power_plugged": plugged})
        monkeypatch.setattr(psutil, "sensors_battery", lambda found=battery: found, raising=False)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

        assert read_pressure() == expected


def test_pressure_is_said_once_and_again_when_it_comes_back() -> None:
    readings = iter(["on battery", "on battery", None, "on battery"])
    found = yield_to_machine(
        _events(4), pause=False, stop=lambda: False, read=lambda: next(readings), sleep=_never
    )

    said = [(event.step, event.paused) for event in found if isinstance(event, UnderPressure)]

    assert said == [(1, False), (4, False)]


def test_a_paused_run_waits_until_the_pressure_is_over() -> None:
    readings = iter(["on battery", "on battery", None, None])
    slept: list[float] = []
    found = yield_to_machine(
        _events(2), pause=True, stop=lambda: False, read=lambda: next(readings), sleep=slept.append
    )

    kinds = [type(event).__name__ for event in found]

    assert kinds == ["Stepped", "UnderPressure", "SaveDue", "Stepped", "SaveDue"]
    assert slept == [POLL_SECONDS] * 2


def test_a_stop_ends_the_waiting() -> None:
    found = yield_to_machine(
        _events(1), pause=True, stop=lambda: True, read=lambda: "on battery", sleep=_never
    )

    assert [type(event).__name__ for event in found] == ["Stepped", "UnderPressure", "SaveDue"]


def _events(steps: int) -> Iterator[Event]:
    for step in range(1, steps + 1):
        yield Stepped(
            step=step, loss=1.0, tokens=1, loss_tokens=1, seconds=1.0, learning_rate=1e-3,
            grad_norm=1.0, peak_bytes=0, epoch=0,
        )  # fmt: skip
        yield SaveDue(state=State(step=step))


def _never(_: float) -> None:
    raise AssertionError("nothing is to be waited for")
