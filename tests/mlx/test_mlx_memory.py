"""What a step holds at its peak: each of the knobs lowers it, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_sessions import one_document, open_session, plan_of
from models import make_model

from edgetune.backend import DeviceOutOfMemoryError, Session, load_backend
from edgetune.device.base import DeviceIdentity
from edgetune.device.footprint import anonymous_bytes
from edgetune.model import LocalModel

LAYERS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "llama", num_hidden_layers=LAYERS,
                      hidden_size=64, intermediate_size=192, head_dim=16)  # fmt: skip


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    """Fail if a closed session leaves another memory or cache limit behind."""
    before = mx.get_memory_limit()
    yield
    assert mx.get_memory_limit() == before


def test_every_knob_lowers_the_peak(folder: Path) -> None:
    peaks = {
        name: _peak(folder, **changes)
        for name, changes in {
            "plain": {},
            "half": {"checkpointing": LAYERS // 2},
            "all": {"checkpointing": LAYERS},
            "disk": {"checkpointing": LAYERS, "placement": "disk"},
            "q4": {"checkpointing": LAYERS, "quantization": "q4"},
        }.items()
    }

    assert peaks["plain"] > peaks["half"] > peaks["all"] > max(peaks["disk"], peaks["q4"])
    assert peaks["all"] < 0.6 * peaks["plain"]


def test_closing_gives_everything_back(folder: Path) -> None:
    mx.clear_cache()
    before = mx.get_active_memory()
    session = open_session(folder)
    _step(session)
    held = session.memory()
    session.close()

    assert held.peak_bytes >= held.current_bytes > 0
    assert mx.get_active_memory() <= before
    assert mx.get_cache_memory() == 0


def test_steps_do_not_grow(folder: Path) -> None:
    session = open_session(folder)
    readings = []
    for _ in range(12):
        _step(session)
        mx.synchronize()
        readings.append(session.memory())
    session.close()

    # the first step makes the optimizer's state; when a value is freed is up to MLX's threads
    early, last = readings[5], readings[-1]
    assert last.peak_bytes <= 1.02 * early.peak_bytes
    assert last.current_bytes <= readings[1].current_bytes + 2**14


def test_the_limits_come_from_the_plan(folder: Path) -> None:
    session = open_session(folder, memory=600_000_000)
    limits = session.spec.limits  # type: ignore[attr-defined]
    limit = limits.budget_bytes - limits.runtime_bytes

    assert session.memory().limit_bytes == limit
    assert mx.get_memory_limit() < limit
    session.close()


def test_the_whole_process_is_held_to_the_limit(folder: Path) -> None:
    model = LocalModel.open(folder)
    plan = plan_of(model, "mlx")
    limited = replace(plan, device=replace(plan.device, limit_bytes=anonymous_bytes() // 2))
    session = load_backend("mlx").open(limited.spec, model)
    before = session.adapter_tensors()
    with pytest.raises(DeviceOutOfMemoryError, match="are in use, the limit is"):
        _step(session)
    after = session.adapter_tensors()
    session.close()

    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_backend_is_usable_and_says_on_what() -> None:
    usable = load_backend("mlx").usable(DeviceIdentity("mlx"))

    assert usable.value
    assert "on Metal" in usable.because or "on CPU, for tests" in usable.because


def _peak(folder: Path, **changes: Any) -> int:
    session = open_session(folder, **changes)
    between_steps = session.memory().current_bytes
    mx.reset_peak_memory()
    _step(session)
    peak = session.memory().peak_bytes if between_steps else 0
    session.close()
    return peak


def _step(session: Session) -> None:
    batch = one_document(4, length=32)
    session.step((batch,), loss_tokens=batch.loss_tokens, learning_rate=1e-3)
