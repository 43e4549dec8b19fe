"""Training in float16: as near to float32 as its numbers allow, with a loss scale that finds its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import micro_batch
from models import make_model
from sessions import session_for

from edgetune.errors import DivergedError
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune_torch import loss_scale
from edgetune_torch.session import TorchSession

BATCH = micro_batch((9, 6), (17,), width=19)
RATE = 1e-2


@pytest.fixture
def model(tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", "llama", initializer_range=0.1))


def opened(model: LocalModel, dtype: str, **knobs: Any) -> Any:
    return session_for(model, compute_dtype=dtype, method=Lora(rank=4), **knobs)


def step(session: TorchSession) -> float:
    return session.step([BATCH], loss_tokens=BATCH.loss_tokens, learning_rate=RATE).loss


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_fifty_steps_follow_those_of_float32(model: LocalModel, quantization: str) -> None:
    losses = []
    for dtype in ("float32", "float16"):
        with opened(model, dtype, quantization=quantization) as session:
            losses.append([step(session) for _ in range(50)])
    exact, narrow = losses

    assert exact[-1] < 0.5 * exact[0]
    assert narrow == pytest.approx(exact, rel=0.01)


def test_the_scale_finds_its_place_and_grows_again(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "START", 2.0**40)  # overflows at once
    monkeypatch.setattr(loss_scale, "LARGEST", 2.0**40)
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    with opened(model, "float16") as session:
        step(session)
        found = session.loss_scale.value
        assert 1 < found < 2.0**40
        assert session.steps == 1  # the step was taken, however often it was computed
        for _ in range(2):
            step(session)
        assert session.loss_scale.value == 2 * found


@pytest.mark.parametrize("start", [1.0, 2.0**10])
def test_the_scale_changes_next_to_nothing(
    model: LocalModel, start: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "START", start)
    with opened(model, "float16") as session:
        found = session.step([BATCH], loss_tokens=BATCH.loss_tokens, learning_rate=RATE)
    with opened(model, "float32") as session:
        exact = session.step([BATCH], loss_tokens=BATCH.loss_tokens, learning_rate=RATE)

    assert found.grad_norm == pytest.approx(exact.grad_norm, rel=0.01)


def test_a_run_goes_on_with_its_scale_to_the_bit(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "START", 2.0**30)
    monkeypatch.setattr(loss_scale, "LARGEST", 2.0**30)
    monkeypatch.setattr(loss_scale, "PATIENCE", 4)
    with opened(model, "float16") as session:
        for _ in range(6):
            step(session)
        adapter, state = session.adapter_tensors(), session.optimizer_tensors()
        expected = [step(session) for _ in range(6)]
        scale = session.loss_scale.value
        last = session.adapter_tensors()
    with opened(model, "float16") as session:
        session.restore(adapter, state)
        assert [step(session) for _ in range(6)] == expected
        assert session.loss_scale.value == scale
        again = session.adapter_tensors()
    assert all(np.array_equal(again[name], x) for name, x in last.items())


def test_other_number_formats_have_no_scale(model: LocalModel) -> None:
    with opened(model, "float32") as session:
        step(session)
        assert session.loss_scale.value == 1.0
        assert loss_scale.NAME not in session.optimizer_tensors()


def test_what_no_scale_helps_is_told(model: LocalModel) -> None:
    with opened(model, "float16") as session:
        with torch.no_grad():
            for x in session.parameters.values():
                x.fill_(1e4)
        with pytest.raises(DivergedError):
            step(session)
        assert (session.steps, session.loss_scale.value) == (0, loss_scale.START)
